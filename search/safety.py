"""The threat model: what comes from outside, what it could do, what holds it, and the test that proves it.

Trusted is what the user runs: their shell, the packages they installed, and the Python code they name with
`--task` and `--model`. Not trusted is all data: a policy, profile, run folder or pool that somebody shared,
weights, networks and data sets from anywhere, what a device or a server answers, and who calls the device
agent. Data may be wrong, and then the numbers that follow from it are; it may not run code, write or read
outside its folder, take memory without bounds, steer the terminal, or end in anything but one clear line.

Shown by `search doctor --threats`. Every test named here exists: a test says so.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Threat:
    """One line of the page.

    Attributes:
        subject: what comes from outside.
        danger: what it could do.
        held: what prevents it; where something remains, that too.
        tests: file::test, below `tests/`.
    """

    subject: str
    danger: str
    held: str
    tests: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


_SAFETY, _PARSERS = "search/test_safety.py::", "search/test_parsers.py::"
_AGENT, _TROUBLE = "hw_profiles/devices/test_agent.py::", "hw_profiles/devices/test_trouble.py::"

THREATS: tuple[Threat, ...] = (
    Threat(
        "any file",
        "a parser crashes, hangs, or shows a stack trace",
        "every parser takes its input or refuses it in one line; property tests, scripts/fuzz.py",
        (f"{_PARSERS}test_anything", f"{_PARSERS}test_a_damaged_example", f"{_PARSERS}test_what_has_no_end"),
    ),
    Threat(
        "any file",
        "running code while it is read",
        "no pickle, eval or exec; torch files through torch's weights-only reader, NumPy without objects. "
        "One file of an installed package, known by its SHA-256, is a pickled array",
        (f"{_SAFETY}test_nothing_unpickles_or_evaluates", f"{_SAFETY}test_code_in_data_is_not_run"),
    ),
    Threat(
        "any file",
        "escape codes in a name steer the terminal",
        "errors are shown with printable characters only, and shortened",
        (f"{_SAFETY}test_names_steer_no_terminal",),
    ),
    Threat(
        "policies",
        "numbers that are none, a billion layers, other schemas",
        "schema and size checked; resolved against the network before anything is done",
        (f"{_PARSERS}test_a_document_with_an_odd_value", "search/test_bad_inputs.py::test_bad_input"),
    ),
    Threat(
        "profiles",
        "packed bombs, changed rows, device names that are paths",
        "sizes limited, every row addressed by its content, names made into slugs",
        (
            "hw_profiles/test_profiles.py::test_bombs_are_not_unpacked",
            "hw_profiles/test_profiles.py::test_damage_is_named_with_its_line",
            "hw_profiles/test_profiles.py::test_names_lead_nowhere_else",
        ),
    ),
    Threat(
        "run folders",
        "links that have a search read or overwrite files elsewhere",
        "a folder with a link is refused; `latest` is a name; files are written under a new name, then moved",
        (
            f"{_SAFETY}test_links_in_a_run_folder_are_refused",
            f"{_SAFETY}test_latest_leads_to_no_other_folder",
            f"{_SAFETY}test_a_link_under_a_drafts_name_is_not_written_through",
        ),
    ),
    Threat(
        "run folders",
        "state of Ray Tune in them, which is pickled, runs code when the recovery is resumed",
        "that state lies in the user's cache folder, under a name that follows from journal and place, until "
        "the run ends; it is read only where nobody else may write. Checkpoints are safetensors and JSON. On "
        "the nodes of a cluster Ray itself unpickles what its head sends: join only your own",
        (
            "search/test_private.py::test_places_follow_from_the_journal_and_lie_in_no_run_folder",
            "search/test_private.py::test_what_others_may_write_is_refused",
            "search/test_recover_ray.py::test_a_foreign_run_is_not_unpickled",
        ),
    ),
    Threat(
        "configs of others",
        "a config names the code of its task, as --task and --model do",
        "`search report` runs none of it. --config, --resume, export and measure do, by their nature: read "
        "`task`, `model` and `metric` in config.yaml first where the run is somebody else's",
        (f"{_SAFETY}test_a_report_of_a_run_runs_none_of_its_code",),
    ),
    Threat(
        "results",
        "scripts in the names of layers run when the report is opened",
        "everything that a report shows is escaped, and it loads nothing",
        (f"{_SAFETY}test_a_report_runs_nothing_of_what_it_shows",),
    ),
    Threat(
        "journals",
        "a cut tail, changed records, records that make no sense",
        "checksums and numbers; a cut tail is left out and said; sense is checked besides",
        (
            "search/test_journal.py::test_truncation_at_every_byte_keeps_exactly_the_whole_records",
            f"{_PARSERS}test_records_with_an_odd_value_and_the_right_checksum",
            f"{_SAFETY}test_a_torn_tail_is_said_and_the_run_goes_on",
        ),
    ),
    Threat(
        "ONNX files",
        "external data from outside the folder, by path or by link; inputs of a terabyte",
        "locations and links checked before the runtime opens the file. The network itself is run by "
        "onnxruntime, here without a sandbox: do not price networks of people you would not run code of",
        (f"{_SAFETY}test_external_data_stays_in_its_folder", f"{_SAFETY}test_inputs_without_bounds"),
    ),
    Threat(
        "checkpoints",
        "pickled code, packed bombs",
        "safetensors, or tensors only; packed members are refused; shapes are the network's",
        (f"{_SAFETY}test_code_in_data_is_not_run", f"{_SAFETY}test_packed_weights_are_refused"),
    ),
    Threat(
        "data files",
        "pickled objects, packed bombs, images of a billion pixels",
        "no objects; sizes are read before the contents; Pillow's own limit on pixels",
        (
            f"{_SAFETY}test_code_in_data_is_not_run",
            f"{_SAFETY}test_packed_data_is_not_unpacked",
            f"{_SAFETY}test_an_image_of_a_billion_pixels",
        ),
    ),
    Threat(
        "pool files",
        "bombs, endless lines, NaN, policies under a false digest",
        "streamed, lines and ratio limited, digests recomputed, nothing taken over before all is checked. "
        "False accuracies are believed; the delivered network is scored anew",
        (
            "search/test_pool_file.py::test_one_wrong_line_and_nothing_is_added",
            "search/test_pool_file.py::test_what_is_no_pool_file_is_one_line",
            "search/test_pool_file.py::test_a_bomb_of_many_lines_is_not_unpacked",
            "search/test_pool_file.py::test_a_large_pool_takes_no_more_memory_than_a_small_one",
        ),
    ),
    Threat(
        "pool servers",
        "a password in files or on the terminal; rows that are bombs; a server that hangs",
        "passwords are left out of all that is stored and shown; rows limited; time limits",
        (
            "search/test_pool_postgres.py::test_a_search_leaves_the_password_nowhere",
            "search/test_pool_postgres.py::test_damaged_rows_count_as_not_there",
            "search/test_pool_postgres.py::test_a_row_that_somebody_holds_is_waited_for_and_not_for_ever",
        ),
    ),
    Threat(
        "target and config YAML",
        "objects of Python, aliases that unfold into billions, nesting without end",
        "plain values only; size, depth and unfolded size are checked before any value is made",
        (f"{_SAFETY}test_yaml_bombs", f"{_PARSERS}test_yaml_with_an_odd_value"),
    ),
    Threat(
        "who calls the device agent",
        "measuring, or reading files, without leave; filling memory",
        "a token, compared in constant time; frames limited before they are read; no paths; no open address "
        "without --force. HTTP is not encrypted: over networks that you do not trust, use SSH",
        (
            f"{_AGENT}test_the_server_refuses_before_it_reads",
            f"{_AGENT}test_what_is_no_frame_is_refused_before_it_is_read",
            f"{_AGENT}test_open_addresses_need_force",
            f"{_AGENT}test_the_server_takes_one_job_at_a_time",
        ),
    ),
    Threat(
        "networks on the device",
        "one that crashes the runtime, takes all memory, or names other files",
        "a process and a folder of its own, with limits on memory, files and time; external data refused",
        (
            f"{_AGENT}test_a_worker_is_confined",
            f"{_AGENT}test_a_network_that_kills_its_worker_is_named_and_the_rest_goes_on",
            f"{_AGENT}test_a_silent_worker_is_ended",
            f"{_AGENT}test_weights_in_other_files_are_refused",
        ),
    ),
    Threat(
        "what a device answers",
        "nonsense that is believed; another host in its place",
        "schemas and limits; SSH host keys must be known",
        (f"{_TROUBLE}test_hostile_replies_are_one_message", f"{_TROUBLE}test_host_keys_and_logins"),
    ),
    Threat(
        "secrets of a command",
        "the agent's token in config.yaml, journal or results",
        "stored nowhere, left out of the command that results.json repeats",
        (f"{_SAFETY}test_secrets_are_left_out_of_the_command",),
    ),
)


def page(width: int = 100) -> str:
    """The page as text."""
    lines = [*(__doc__ or "").strip().splitlines()[2:8], ""]
    for t in THREATS:
        lines.append(f"{t.subject}: {t.danger}")
        lines += textwrap.wrap(t.held, width, initial_indent="    ", subsequent_indent="    ")
        lines += [f"      {test}" for test in t.tests]
    return "\n".join(lines)


__all__ = ["THREATS", "Threat", "page"]
