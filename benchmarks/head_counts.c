/* A QEMU plugin that counts instructions, accesses and cache misses between two calls of getppid.
 *
 * Arguments: one "NAME=KIBxWAYS" for each level of the data caches, the first level first. Caches have lines of 64
 * bytes, least recently used, and no prefetcher. A call of getppid starts counting; the next one prints the counts on
 * standard error and stops. Needs version 1 of the plugin interface (QEMU 6 to 8). The interface is declared here, so
 * that no header of QEMU is needed. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEVELS = 4, LINE = 64, GETPPID = 173, READS_AND_WRITES = 3, NO_REGISTERS = 0 };

struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*call)(uint64_t, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, void (*call)(unsigned, void *),
                                                 int flags, void *data);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *instruction,
                                             void (*call)(unsigned, uint32_t, uint64_t, void *), int flags, int which,
                                             void *data);
extern void qemu_plugin_register_vcpu_syscall_cb(uint64_t id,
                                                 void (*call)(uint64_t, unsigned, int64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t));
extern bool qemu_plugin_mem_is_store(uint32_t info);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

struct cache {
    uint64_t *lines; /* number of the line + 1; 0: empty */
    uint64_t *used;  /* time of the last access */
    uint64_t sets, ways, time;
};

static struct cache caches[LEVELS];
static int levels;
static bool counting;
static uint64_t instructions, loads, stores, misses[LEVELS];

/* Add a level of `kib` KiB; false if it has no whole sets or there are too many levels. */
__attribute__((visibility("default"))) bool add_level(long kib, long ways) {
    if (levels == LEVELS || kib <= 0 || ways <= 0 || kib * 1024 % (LINE * ways)) return false;
    struct cache *one = &caches[levels++];
    one->ways = ways;
    one->sets = kib * 1024 / LINE / ways;
    one->lines = calloc(one->sets * ways, sizeof(uint64_t));
    one->used = calloc(one->sets * ways, sizeof(uint64_t));
    return one->lines && one->used;
}

/* Whether `line` is in the cache; afterwards it is. */
static bool find(struct cache *one, uint64_t line) {
    uint64_t first = line % one->sets * one->ways, oldest = first;
    for (uint64_t way = first; way < first + one->ways; way++) {
        if (one->lines[way] == line + 1) {
            one->used[way] = ++one->time;
            return true;
        }
        if (one->used[way] < one->used[oldest]) oldest = way;
    }
    one->lines[oldest] = line + 1;
    one->used[oldest] = ++one->time;
    return false;
}

/* The number of levels that miss `address`. */
__attribute__((visibility("default"))) int look_up(uint64_t address) {
    int level = 0;
    while (level < levels && !find(&caches[level], address / LINE)) misses[level++]++;
    return level;
}

static void accessed(unsigned cpu, uint32_t info, uint64_t address, void *data) {
    if (!counting) return;
    if (qemu_plugin_mem_is_store(info))
        stores++;
    else
        loads++;
    look_up(address);
}

static void executed(unsigned cpu, void *count) {
    if (counting) instructions += (uintptr_t)count;
}

static void translated(uint64_t id, struct qemu_plugin_tb *block) {
    size_t count = qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, (void *)count);
    for (size_t i = 0; i < count; i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), accessed, NO_REGISTERS, READS_AND_WRITES,
                                         NULL);
}

static void called(uint64_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    if (number != GETPPID) return;
    if (counting) {
        fprintf(stderr, "counted %lu %lu %lu", instructions, loads, stores);
        for (int level = 0; level < levels; level++) fprintf(stderr, " %lu", misses[level]);
        fprintf(stderr, "\n");
    }
    counting = !counting;
    instructions = loads = stores = 0;
    memset(misses, 0, sizeof misses);
}

__attribute__((visibility("default"))) int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        long kib, ways;
        const char *value = strchr(argv[i], '=');
        if (!value || sscanf(value + 1, "%ldx%ld", &kib, &ways) != 2 || !add_level(kib, ways)) {
            fprintf(stderr, "head_counts: %s is no level of a cache: give NAME=KIBxWAYS\n", argv[i]);
            return 1;
        }
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
