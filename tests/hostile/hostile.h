/* What every attempt of the hostile program uses. See main.c for how an attempt is run and judged. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* The walls of the sandbox. An attempt names every wall that stops it by itself: it gets through only when all of them are
 * missing. So an attempt with one wall proves that wall, and one with three is defended three times. */
enum {
    USER = 1,         /* the user namespace: root inside is nobody outside */
    SECCOMP = 2,      /* the list of system calls */
    CAPABILITIES = 4, /* bounding set, no_new_privs, empty inheritable set */
    MASKS = 8,        /* hidden and read-only paths; nosuid, nodev and read-only mounts */
    CGROUP = 16,      /* limits: cgroup, resource limits, sizes of memory-backed file systems */
    EGRESS = 32,      /* packet rules */
    NAMESPACES = 64,  /* mount, pid, network, IPC, UTS namespace: in every build; the control is the same program without a sandbox */
    START = 128,      /* what the launcher leaves open or lets the image decide; control as above */
    KERNEL = 256,     /* the kernel's own limit, or a mended bug of it: nothing of ours to take away */
};

struct attempt {
    const char *name;
    int walls;
    const char *cve; /* published cases with this mechanism, or "" */
    const char *what;
    void (*run)(void);
    int seconds; /* given up after so long; 0: 10 */
};

extern const struct attempt mount_attempts[], kernel_attempts[], file_attempts[], privilege_attempts[], network_attempts[],
    neighbour_attempts[], bomb_attempts[];

/* How an attempt ends. None returns. */
_Noreturn void refused(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void contained(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void escaped(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* This kernel or this test has nothing to attack: no answer. */
_Noreturn void absent(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Refused if the call failed, escaped if it succeeded. */
_Noreturn void judge(long result, const char *what);
/* For calls that would do harm: made with arguments that the kernel refuses only after it has checked the caller's rights. So
 * any answer but a refusal of rights means that the caller may do it. */
_Noreturn void judge_door(long result, const char *what);
/* A file that must not open for writing. Nothing is written. */
_Noreturn void judge_writable(const char *path);
/* A file that must not show anything. */
_Noreturn void judge_readable(const char *path);

/* A parameter of the request (`?name=value`), or NULL. */
const char *parameter(const char *name);
/* The same, without which there is nothing to attack. */
const char *needed(const char *name);
/* Descriptors above 2 that were open when the program began. */
extern char inherited[];
