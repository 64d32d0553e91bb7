/* Bombs: each takes as much as it gets of one thing, at most a bounded amount beyond what its limit should be, so that a missing
 * limit is seen without the machine being taken down. Everything taken is given back when the attempt's process ends. */
#include "hostile.h"
#include <dirent.h>
#include <arpa/inet.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>

/* A limit the test knows, as a number. */
static long number(const char *name) { return atol(needed(name)); }

static void fork_bomb(void) {
    long limit = number("pids"), made = 0;
    int hold[2];
    if (pipe(hold) < 0) refused("pipe: %s", strerror(errno));
    for (; made <= limit; made++) {
        pid_t child = fork();
        if (child == 0) {
            char byte;
            close(hold[1]);
            /* Until the attempt ends, however it ends. */
            if (read(hold[0], &byte, 1) >= 0) _exit(0);
            _exit(1);
        }
        if (child < 0) contained("%ld processes, then %s", made, strerror(errno));
    }
    escaped("%ld processes", made);
}

static void memory_bomb(void) {
    size_t limit = (size_t)number("memory") << 20, taken = 0, chunk = 4 << 20;
    for (; taken < limit + (64 << 20); taken += chunk) {
        char *memory = mmap(NULL, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) contained("%zu MiB, then %s", taken >> 20, strerror(errno));
        memset(memory, 1, chunk);
    }
    escaped("%zu MiB of %zu", taken >> 20, limit >> 20);
}

static void fill(const char *folder) {
    size_t limit = (size_t)number("memory") << 20, taken = 0;
    static char chunk[1 << 20];
    char path[128];
    snprintf(path, sizeof path, "%s/hostile-fill", folder);
    memset(chunk, 1, sizeof chunk);
    int file = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (file < 0) refused("open %s: %s", path, strerror(errno));
    /* Gone with its descriptor. */
    unlink(path);
    for (; taken < limit + (64 << 20); taken += sizeof chunk)
        if (write(file, chunk, sizeof chunk) < 0) contained("%zu MiB in %s, then %s", taken >> 20, folder, strerror(errno));
    escaped("%zu MiB in %s", taken >> 20, folder);
}
static void tmpfs_bomb(void) { fill("/tmp"); }
static void shm_bomb(void) { fill("/dev/shm"); }

static void memfd_bomb(void) {
    size_t limit = (size_t)number("memory") << 20, taken = 0;
    static char chunk[1 << 20];
    memset(chunk, 1, sizeof chunk);
    int file = memfd_create("hostile", 0);
    for (; taken < limit + (64 << 20); taken += sizeof chunk)
        if (write(file, chunk, sizeof chunk) < 0) contained("%zu MiB, then %s", taken >> 20, strerror(errno));
    escaped("%zu MiB outside of any file system", taken >> 20);
}

/* What the kernel keeps for sockets that nobody reads from. */
static void socket_bomb(void) {
    size_t limit = (size_t)number("memory") << 20, taken = 0;
    static char chunk[65536];
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&any, size) < 0 || listen(listener, 1024) < 0 || getsockname(listener, (struct sockaddr *)&any, &size) < 0)
        refused("listen: %s", strerror(errno));
    for (int pair = 0; pair < 1024 && taken < limit + (64 << 20); pair++) {
        int end = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (end < 0) contained("%zu MiB, then %s", taken >> 20, strerror(errno));
        connect(end, (struct sockaddr *)&any, size);
        if (accept(listener, NULL, NULL) < 0) contained("%zu MiB, then %s", taken >> 20, strerror(errno));
        for (ssize_t got; (got = write(end, chunk, sizeof chunk)) > 0;) taken += (size_t)got;
    }
    if (taken < limit) contained("%zu MiB in 1,024 connections", taken >> 20);
    escaped("%zu MiB in connections that nobody reads from", taken >> 20);
}

/* Names in a folder, removed again by whoever asks. */
static void inode_bomb(void) {
    long limit = number("inodes"), made = 0;
    char path[64];
    mkdir("/tmp/hostile-inodes", 0700);
    int why = 0;
    for (; made <= limit + 1024; made++) {
        snprintf(path, sizeof path, "/tmp/hostile-inodes/%ld", made);
        int file = open(path, O_CREAT | O_WRONLY, 0600);
        if (file < 0) {
            why = errno;
            break;
        }
        close(file);
    }
    for (long one = 0; one < made; one++) {
        snprintf(path, sizeof path, "/tmp/hostile-inodes/%ld", one);
        unlink(path);
    }
    rmdir("/tmp/hostile-inodes");
    if (why) contained("%ld files, then %s", made, strerror(why));
    escaped("%ld files", made);
}

static void descriptor_bomb(void) {
    long made = 0, limit = number("descriptors");
    struct rlimit more = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_NOFILE, &more);
    while (dup(0) >= 0)
        if (++made > limit) escaped("%ld descriptors", made);
    contained("%ld descriptors, then %s", made, strerror(errno));
}

static void log_bomb(void) {
    static char line[8192];
    memset(line, 'x', sizeof line - 1);
    line[sizeof line - 1] = '\n';
    long mebibytes = number("log");
    for (long written = 0; written < mebibytes << 20; written += (long)sizeof line)
        if (write(1, line, sizeof line) < 0) contained("%ld MiB, then %s", written >> 20, strerror(errno));
    contained("%ld MiB were taken; the test looks at what was kept", mebibytes);
}

static void line_bomb(void) {
    static char bytes[65536];
    memset(bytes, '\n', sizeof bytes);
    for (long written = 0; written < number("log") << 17; written += (long)sizeof bytes)
        if (write(1, bytes, sizeof bytes) < 0) contained("then %s", strerror(errno));
    contained("a flood of empty lines was taken; the test looks at what was kept");
}

/* In each hierarchy that can be seen, whatever the version. */
static void in_cgroups(const char *name, int directory) {
    char path[512];
    DIR *root = opendir("/sys/fs/cgroup");
    int tried = 0, why = 0;
    if (!root) absent("no /sys/fs/cgroup");
    for (struct dirent *entry; (entry = readdir(root));) {
        if (strcmp(entry->d_name, "..") == 0) continue;
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/%s", entry->d_name, name);
        if (!directory && access(path, F_OK) < 0) continue;
        tried++;
        int done = directory ? mkdir(path, 0755) : open(path, O_WRONLY);
        if (done >= 0 && directory) rmdir(path);
        if (done >= 0) escaped("%s %s", directory ? "made" : "opened for writing", path);
        why = errno;
    }
    if (tried == 0) absent("nothing of the name %s", name);
    refused("%d places: %s", tried, strerror(why));
}
static void cgroup_bomb(void) { in_cgroups("hostile", 1); }
static void release_agent(void) { in_cgroups("release_agent", 0); }
static void notify_on_release(void) { in_cgroups("notify_on_release", 0); }
static void cgroup_procs(void) { in_cgroups("cgroup.procs", 0); }
static void cgroup_limits(void) { in_cgroups(access("/sys/fs/cgroup/memory.max", F_OK) == 0 ? "memory.max" : "memory.limit_in_bytes", 0); }
static void cgroup_pids(void) { in_cgroups("pids.max", 0); }
static void cgroup_devices(void) { in_cgroups("devices.allow", 0); }

static void cgroup_view(void) {
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        char *path = strrchr(line, ':');
        if (!path) continue;
        line[strcspn(line, "\n")] = 0;
        if (strstr(path, "utsuwa") || strstr(path, "..")) escaped("its place on the host is visible: %s", line);
    }
    refused("/proc/self/cgroup shows nothing of the host");
}

/* A terminal pair is a kernel object; the kernel has a few thousand for everybody. */
static void terminal_bomb(void) {
    long made = 0;
    while (made <= 1024) {
        if (open("/dev/ptmx", O_RDWR | O_NOCTTY) < 0) contained("%ld terminals, then %s", made, strerror(errno));
        made++;
    }
    escaped("%ld terminals of the host's 4,096", made);
}

/* Counted for the user and again for whoever made its user namespace. */
static void inotify_bomb(void) {
    long made = 0;
    while (made <= 4096) {
        if (inotify_init1(0) < 0) contained("%ld watchers, then %s", made, strerror(errno));
        made++;
    }
    escaped("%ld watchers", made);
}

static void signal_bomb(void) {
    sigset_t all;
    long made = 0;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    while (made <= 200000) {
        if (sigqueue(getpid(), SIGRTMIN, (union sigval){0}) < 0) contained("%ld signals, then %s", made, strerror(errno));
        made++;
    }
    escaped("%ld signals waiting", made);
}

static void queue_bomb(void) {
    long bytes = 0;
    for (int one = 0; one < 256; one++) {
        char name[32];
        struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = 8192};
        snprintf(name, sizeof name, "/hostile-%d", one);
        mqd_t queue = mq_open(name, O_CREAT | O_RDWR, 0600, &attributes);
        int why = errno;
        if (queue < 0) {
            for (int made = 0; made < one; made++) snprintf(name, sizeof name, "/hostile-%d", made), mq_unlink(name);
            contained("%ld bytes of queues, then %s", bytes, strerror(why));
        }
        bytes += 81920;
    }
    for (int made = 0; made < 256; made++) {
        char name[32];
        snprintf(name, sizeof name, "/hostile-%d", made), mq_unlink(name);
    }
    escaped("%ld bytes of queues", bytes);
}

static void cpu_bomb(void) {
    /* More than there are processors, for two seconds. */
    for (int child = 0; child < 16; child++)
        if (fork() == 0) {
            alarm(2);
            for (;;) __asm__ volatile("" ::: "memory");
        }
    while (wait(NULL) > 0) {}
    contained("16 processes computed for two seconds; the test looks at the neighbour");
}

const struct attempt bomb_attempts[] = {
    {"fork-bomb", CGROUP, "", "as many processes as it gets", fork_bomb, 30},
    {"memory-bomb", CGROUP, "", "as much memory as it gets", memory_bomb, 30},
    {"tmpfs-bomb", CGROUP, "", "as much in /tmp as it gets", tmpfs_bomb, 30},
    {"shm-bomb", CGROUP, "", "as much in /dev/shm as it gets", shm_bomb, 30},
    {"memfd-bomb", CGROUP, "", "as much in an unnamed file as it gets", memfd_bomb, 30},
    {"socket-bomb", CGROUP, "", "as much in connections as it gets", socket_bomb, 30},
    {"inode-bomb", CGROUP, "", "as many files as it gets", inode_bomb, 30},
    {"descriptor-bomb", CGROUP, "", "as many descriptors as it gets", descriptor_bomb, 30},
    {"terminal-bomb", CGROUP, "", "as many terminals as it gets", terminal_bomb, 30},
    {"inotify-bomb", KERNEL, "", "as many watchers of files as it gets", inotify_bomb, 30},
    {"signal-bomb", KERNEL, "", "as many waiting signals as it gets", signal_bomb, 30},
    {"queue-bomb", KERNEL, "", "as many message queues as it gets", queue_bomb, 30},
    {"cpu-bomb", KERNEL, "", "all processors for two seconds", cpu_bomb, 30},
    {"log-bomb", KERNEL, "CVE-2022-1708 CVE-2022-31030", "a log that never ends", log_bomb, 60},
    {"line-bomb", KERNEL, "CVE-2022-1708", "a log of empty lines", line_bomb, 60},
    {"cgroup-bomb", CGROUP | USER, "", "cgroups of its own below its cgroup", cgroup_bomb, 0},
    {"release-agent", CGROUP | USER, "CVE-2022-0492", "release_agent for writing: a program the host runs as root", release_agent, 0},
    {"notify-on-release", CGROUP | USER, "CVE-2022-0492", "notify_on_release for writing", notify_on_release, 0},
    {"cgroup-procs", CGROUP | USER, "CVE-2023-25809", "cgroup.procs for writing: leave its limits", cgroup_procs, 0},
    {"cgroup-memory", CGROUP | USER, "CVE-2023-25809", "its own memory limit for writing", cgroup_limits, 0},
    {"cgroup-pids", CGROUP | USER, "CVE-2023-25809", "its own limit of processes for writing", cgroup_pids, 0},
    {"cgroup-devices", CGROUP | USER | NAMESPACES, "", "devices.allow for writing", cgroup_devices, 0},
    {"cgroup-view", CGROUP | USER, "", "its place in the host's cgroups", cgroup_view, 0},
    {0},
};
