/* A TCG plugin for qemu-user (plugin API 1: qemu 4.2 to 8.2, Debian 12 has 7.2): counts executed instructions.
 *
 *   qemu-aarch64 -plugin a64_counter.so,counts=PATH ...
 *
 * PATH is mapped and holds, as little-endian uint64: the counts by class, the number of marks so far, and a ring
 * of marks. A mark is what the counts were when the guest asked for the time (clock_gettime), and who asked for
 * which clock: its runtime's profiler asks for the clock on the wall around every kernel. The guest and the host read counts from the file while the guest runs.
 * Of guests other than arm64 only A64_ALL is counted. One guest thread: additions are not atomic.
 *
 * qemu's plugin header is not packaged by Debian; the declarations below are those of its documented API.
 */
#include "a64_classes.h"
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MARKS 65536
enum { CLOCK_GETTIME_ARM64 = 113, CLOCK_GETTIME_X86_64 = 228, INLINE_ADD_U64 = 0 };

typedef uint64_t plugin_id;
struct block;
struct instruction;
struct info { /* head of qemu_info_t */
    const char *target_name;
};
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
extern const void *qemu_plugin_insn_data(const struct instruction *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int, void *, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t));

EXPORT int qemu_plugin_version = 1;

static struct shared {
    uint64_t counts[A64_CLASSES];
    uint64_t marks;
    uint64_t ring[MARKS][A64_CLASSES + 1]; /* counts; 256 * thread + clock */
} *shared;
static bool arm64;

static void translated(plugin_id id, struct block *block) {
    size_t n = qemu_plugin_tb_n_insns(block);
    uint64_t found[A64_CLASSES] = {0};
    (void)id;
    if (!arm64)
        found[A64_ALL] = n;
    for (size_t i = 0; arm64 && i < n; i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        a64_classify(word, found);
    }
    for (int k = 0; k < A64_CLASSES; k++)
        if (found[k])
            qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD_U64, &shared->counts[k], found[k]);
}

static void system_call(plugin_id id, unsigned cpu, int64_t number, uint64_t clock, uint64_t b, uint64_t c, uint64_t d,
                        uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != (arm64 ? CLOCK_GETTIME_ARM64 : CLOCK_GETTIME_X86_64))
        return;
    uint64_t *mark = shared->ring[shared->marks % MARKS];
    memcpy(mark, shared->counts, sizeof shared->counts);
    mark[A64_CLASSES] = 256 * (uint64_t)cpu + (clock & 255);
    shared->marks++;
}

EXPORT int qemu_plugin_install(plugin_id id, const struct info *info, int argc, char **argv) {
    int file = -1;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "counts=", 7))
            file = open(argv[i] + 7, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, sizeof *shared)) {
        fprintf(stderr, "a64_counter: give counts=PATH, a file that can be written\n");
        return 1;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared == MAP_FAILED)
        return 1;
    arm64 = !strcmp(info->target_name, "aarch64");
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, system_call);
    return 0;
}
