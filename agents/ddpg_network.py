"""Deep deterministic policy gradient (Lillicrap et al. 2016), with AMC's and HAQ's changes, in torch.

Everything is a function of the seed and of the transitions in their order: initial weights and minibatches
come from numpy generators seeded for that place, and training runs on one thread, since the order of a
parallel sum may change with the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .observation import MASK, STATES
from .sites import K, Vector

Batch = NDArray[np.float32]
#: Set the random numbers of initial weights and minibatches apart from those of suggestions, by number.
INITIAL, TRAINING = 1 << 31, (1 << 31) + 1


@dataclass(frozen=True)
class Hyper:
    """Hyper-parameters; the defaults are those that AMC and HAQ publish.

    ``memory`` counts transitions kept per step of an episode; ``baseline`` is the share of a new batch in
    the moving average of rewards that is subtracted from them.
    """

    hidden: tuple[int, int] = (300, 300)
    lr_actor: float = 1e-4
    lr_critic: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    batch: int = 64
    memory: int = 100
    baseline: float = 0.5


class Actor(nn.Module):
    """States (N, STATES) to actions (N, K) in [0, 1]; parts that the state masks are 0."""

    def __init__(self, hidden: tuple[int, int], rng: np.random.Generator) -> None:
        super().__init__()
        self.first = _linear(STATES, hidden[0], rng)
        self.second = _linear(hidden[0], hidden[1], rng)
        self.last = _linear(hidden[1], K, rng)

    def forward(self, states: Tensor) -> Tensor:
        """Actions of states."""
        x = torch.relu(self.second(torch.relu(self.first(states))))
        out: Tensor = torch.sigmoid(self.last(x)) * states[:, MASK]
        return out


class Critic(nn.Module):
    """Value (N, 1) of taking actions (N, K) in states (N, STATES)."""

    def __init__(self, hidden: tuple[int, int], rng: np.random.Generator) -> None:
        super().__init__()
        self.state = _linear(STATES, hidden[0], rng)
        self.action = _linear(K, hidden[0], rng)
        self.second = _linear(hidden[0], hidden[1], rng)
        self.last = _linear(hidden[1], 1, rng)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """Values of state-action pairs."""
        x = torch.relu(self.state(states) + self.action(actions))
        out: Tensor = self.last(torch.relu(self.second(x)))
        return out


def _linear(cin: int, cout: int, rng: np.random.Generator) -> nn.Linear:
    """torch's default initialisation, U(-1/sqrt(cin), 1/sqrt(cin)), from a generator of our own."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, cin, cout)
    bound = cin**-0.5
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(rng.uniform(-bound, bound, (cout, cin)).astype(np.float32)))
        layer.bias.copy_(torch.from_numpy(rng.uniform(-bound, bound, cout).astype(np.float32)))
    return layer


class Memory:
    """The latest ``limit`` transitions: state, action, reward, next state, 1 unless it was the last step."""

    def __init__(self, limit: int) -> None:
        widths = (STATES, K, 1, STATES, 1)
        self.limit = limit
        self.columns = tuple(np.zeros((limit, w), dtype=np.float32) for w in widths)
        self.count = 0

    def add(self, *row: Vector | float) -> None:
        """Append one transition; the oldest makes room."""
        for column, value in zip(self.columns, row, strict=True):
            column[self.count % self.limit] = value
        self.count += 1

    def sample(self, size: int, rng: np.random.Generator) -> tuple[Batch, ...]:
        """Distinct transitions, fewer when there are not enough: five arrays (N, width)."""
        held = min(self.count, self.limit)
        rows = rng.choice(held, size=min(size, held), replace=False)
        return tuple(c[rows] for c in self.columns)


class Learner:
    """Actor, critic, their targets, the memory and the baseline of one agent.

    ``steps`` per episode sizes the memory.
    """

    def __init__(self, steps: int, seed: int, hyper: Hyper) -> None:
        self.hyper = hyper
        nets = [
            make(hyper.hidden, np.random.default_rng((seed, INITIAL, k)))
            for k, make in ((0, Actor), (0, Actor), (1, Critic), (1, Critic))
        ]
        self.actor, self.actor_target, self.critic, self.critic_target = nets
        self.memory = Memory(hyper.memory * steps)
        self.baseline: float | None = None
        self.updates = 0
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), lr=hyper.lr_actor, fused=True)
        self._critic_adam = torch.optim.Adam(self.critic.parameters(), lr=hyper.lr_critic, fused=True)
        self._pairs = [
            (t, p)
            for target, net in ((self.actor_target, self.actor), (self.critic_target, self.critic))
            for t, p in zip(target.parameters(), net.parameters(), strict=True)
        ]

    def act(self, state: Vector) -> Vector:
        """The actor's action (K,) for a state (STATES,)."""
        with one_thread(), torch.no_grad():
            out: Vector = self.actor(torch.from_numpy(state)[None])[0].numpy()
        return out

    def train(self, updates: int, rng: np.random.Generator) -> None:
        """Critic, actor and targets, ``updates`` times, each on a fresh minibatch."""
        with one_thread():
            for _ in range(updates):
                self._update(*self.memory.sample(self.hyper.batch, rng))

    def _update(self, states: Batch, actions: Batch, rewards: Batch, following: Batch, more: Batch) -> None:
        mean = float(rewards.mean())
        if self.baseline is None:
            self.baseline = mean
        self.baseline += self.hyper.baseline * (mean - self.baseline)
        s, a, n = torch.from_numpy(states), torch.from_numpy(actions), torch.from_numpy(following)
        with torch.no_grad():
            later = self.critic_target(n, self.actor_target(n))
            worth = torch.from_numpy(rewards - np.float32(self.baseline))
            target = worth + self.hyper.discount * torch.from_numpy(more) * later
        self._critic_adam.zero_grad()
        nn.functional.mse_loss(self.critic(s, a), target).backward()
        self._critic_adam.step()
        # Only the actor learns here: the critic's own gradients would be thrown away.
        self.critic.requires_grad_(False)
        self._actor_adam.zero_grad()
        (-self.critic(s, self.actor(s)).mean()).backward()
        self._actor_adam.step()
        self.critic.requires_grad_(True)
        with torch.no_grad():
            for old, new in self._pairs:
                old.lerp_(new, self.hyper.tau)
        self.updates += 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, and as it was before afterwards."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
