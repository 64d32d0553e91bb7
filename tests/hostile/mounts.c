/* Mounts and namespaces: every call that makes, moves or joins one. */
#include "hostile.h"
#include <linux/mount.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/mount.h>

/* Whatever was mounted goes again: later attempts look at what is below. */
static _Noreturn void judge_mount(int result, const char *what) {
    int why = errno;
    if (result == 0) umount2("/srv", MNT_DETACH);
    errno = why;
    judge(result, what);
}
static void mount_tmpfs(void) { judge_mount(mount("none", "/srv", "tmpfs", 0, NULL), "mount tmpfs"); }
static void mount_proc(void) { judge_mount(mount("none", "/srv", "proc", 0, NULL), "mount a second /proc"); }
static void mount_debugfs(void) { judge_mount(mount("none", "/srv", "debugfs", 0, NULL), "mount debugfs"); }
static void mount_bind(void) { judge_mount(mount("/proc", "/srv", NULL, MS_BIND | MS_REC, NULL), "bind /proc elsewhere"); }

static void mount_cgroup(void) {
    int result = mount("none", "/srv", "cgroup2", 0, NULL);
    if (result < 0) result = mount("none", "/srv", "cgroup", 0, "none,name=hostile");
    judge_mount(result, "mount a cgroup hierarchy");
}

static void remount_writable(void) {
    int result = mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV, NULL), why = errno;
    if (result == 0) mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    errno = why;
    judge(result, "remount /proc with other flags");
}

static void umount_mask(void) {
    struct stat there;
    if (stat("/proc/keys", &there) < 0) absent("no /proc/keys");
    int result = umount2("/proc/keys", MNT_DETACH), why = errno;
    if (result < 0 && why == EINVAL) escaped("unmounting is allowed, only nothing covers /proc/keys");
    if (result == 0) mount("/dev/null", "/proc/keys", NULL, MS_BIND, NULL);
    errno = why;
    judge(result, "take the cover off /proc/keys");
}

static void fsopen_call(void) { judge(syscall(SYS_fsopen, "tmpfs", 0), "fsopen"); }

/* The legacy parameter buffer of a file system without its own parser: its length underflowed at the page's end. */
static void fsconfig_overflow(void) {
    int file_system = (int)syscall(SYS_fsopen, "cgroup2", 0);
    if (file_system < 0) refused("fsopen: %s", strerror(errno));
    char value[256];
    memset(value, 'A', sizeof value - 1);
    value[sizeof value - 1] = 0;
    for (int round = 0; round < 17; round++) syscall(SYS_fsconfig, file_system, FSCONFIG_SET_STRING, "x", value, 0);
    escaped("fsconfig reached the parser of a file system");
}

static void fsmount_call(void) { judge_door(syscall(SYS_fsmount, -1, 0, 0), "fsmount"); }
static void fspick_call(void) { judge(syscall(SYS_fspick, AT_FDCWD, "/", 0), "fspick"); }
static void open_tree_clone(void) { judge(syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE), "open_tree"); }
static void move_mount_call(void) { judge_door(syscall(SYS_move_mount, -1, "", -1, "", 0x44), "move_mount"); }

static void mount_setattr_call(void) {
    struct mount_attr attributes = {.attr_clr = MOUNT_ATTR_NOEXEC};
    long result = syscall(SYS_mount_setattr, AT_FDCWD, "/proc", 0, &attributes, sizeof attributes);
    int why = errno;
    attributes = (struct mount_attr){.attr_set = MOUNT_ATTR_NOEXEC};
    if (result == 0) syscall(SYS_mount_setattr, AT_FDCWD, "/proc", 0, &attributes, sizeof attributes);
    errno = why;
    judge(result, "change the flags of /proc's mount");
}

static void pivot_root_call(void) { judge_door(syscall(SYS_pivot_root, "/nowhere", "/nowhere"), "pivot_root"); }

static void chroot_call(void) {
    if (chroot("/srv") < 0) refused("chroot: %s", strerror(errno));
    /* The old way out: a root below the working directory leaves `..` unguarded. */
    escaped("chroot succeeded");
}

/* Nothing is mounted there. */
static void umount_root(void) { judge_door(umount2("/etc", 0), "umount2"); }

static void join(const char *kind, int flag) {
    char path[64];
    snprintf(path, sizeof path, "/proc/1/ns/%s", kind);
    int space = open(path, O_RDONLY);
    if (space < 0) refused("open %s: %s", path, strerror(errno));
    judge_door(setns(space, flag), "setns");
}
static void setns_net(void) { join("net", CLONE_NEWNET); }
static void setns_mnt(void) { join("mnt", CLONE_NEWNS); }
static void setns_pid(void) { join("pid", CLONE_NEWPID); }
static void setns_user(void) { join("user", CLONE_NEWUSER); }

static void unshare_user(void) { judge(unshare(CLONE_NEWUSER), "unshare a user namespace"); }
static void unshare_mount(void) { judge(unshare(CLONE_NEWNS), "unshare a mount namespace"); }
static void unshare_pid(void) { judge(unshare(CLONE_NEWPID), "unshare a pid namespace"); }
static void unshare_net(void) { judge(unshare(CLONE_NEWNET), "unshare a network namespace"); }
static void unshare_ipc(void) { judge(unshare(CLONE_NEWIPC), "unshare an IPC namespace"); }
static void unshare_uts(void) { judge(unshare(CLONE_NEWUTS), "unshare a UTS namespace"); }
static void unshare_cgroup(void) { judge(unshare(CLONE_NEWCGROUP), "unshare a cgroup namespace"); }
static void unshare_time(void) { judge(unshare(CLONE_NEWTIME), "unshare a time namespace"); }

static void clone_user(void) {
    long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    judge(child, "clone into a user namespace");
}

static void clone3_with(uint64_t flags, const char *what) {
    struct clone_args arguments = {.flags = flags, .exit_signal = SIGCHLD};
    long child = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (child == 0) _exit(0);
    judge(child, what);
}
static void clone3_user(void) { clone3_with(CLONE_NEWUSER, "clone3 into a user namespace"); }
static void clone3_mount(void) { clone3_with(CLONE_NEWNS, "clone3 into a mount namespace"); }

/* With a user namespace of one's own come all capabilities over it: how most bugs of file systems become reachable. */
static void nested_overlay(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) refused("unshare: %s", strerror(errno));
    mkdir("/tmp/up", 0755), mkdir("/tmp/work", 0755);
    /* In a mount namespace that ends with this process. */
    if (mount("overlay", "/srv", "overlay", 0, "lowerdir=/etc,upperdir=/tmp/up,workdir=/tmp/work") == 0) escaped("an overlay in a namespace of its own");
    escaped("a namespace of its own; its overlay: %s", strerror(errno));
}

static void nested_cgroup(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) < 0) refused("unshare: %s", strerror(errno));
    escaped("namespaces in which a v1 hierarchy may be mounted; mount: %d", mount("none", "/srv", "cgroup", 0, "memory"));
}

static void listmount_call(void) {
    struct { uint32_t size, spare; uint64_t mount, parameter; } request = {24, 0, ~0ULL, 0};
    uint64_t found[16];
    judge(syscall(458, &request, found, 16, 0), "listmount");
}

static void sethostname_call(void) { judge(sethostname("hostile", 7), "sethostname"); }

const struct attempt mount_attempts[] = {
    {"mount-tmpfs", SECCOMP | CAPABILITIES, "", "mount(2) of a tmpfs", mount_tmpfs, 0},
    {"mount-proc", SECCOMP | CAPABILITIES, "CVE-2023-27561", "mount(2) of a second /proc without covers", mount_proc, 0},
    {"mount-debugfs", SECCOMP | CAPABILITIES | USER, "", "mount(2) of debugfs, the kernel's own controls", mount_debugfs, 0},
    {"mount-bind", SECCOMP | CAPABILITIES, "CVE-2019-16884 CVE-2023-28642", "bind /proc to another place, where nothing covers it", mount_bind, 0},
    {"mount-cgroup", SECCOMP | CAPABILITIES, "CVE-2022-0492", "mount(2) of a cgroup hierarchy of its own", mount_cgroup, 0},
    {"remount", SECCOMP | CAPABILITIES, "", "remount(2) of /proc with other flags, as one makes /proc/sys writable", remount_writable, 0},
    {"umount-mask", SECCOMP | CAPABILITIES, "CVE-2025-31133", "umount2(2) of what hides /proc/keys", umount_mask, 0},
    {"umount", SECCOMP | CAPABILITIES, "", "umount2(2) at all", umount_root, 0},
    {"fsopen", SECCOMP | CAPABILITIES, "", "fsopen(2)", fsopen_call, 0},
    {"fsconfig-overflow", SECCOMP | CAPABILITIES, "CVE-2022-0185", "fsconfig(2) with more than a page of legacy parameters", fsconfig_overflow, 0},
    {"fsmount", SECCOMP | CAPABILITIES, "", "fsmount(2)", fsmount_call, 0},
    {"fspick", SECCOMP | CAPABILITIES, "", "fspick(2) of its root", fspick_call, 0},
    {"open-tree", SECCOMP | CAPABILITIES, "", "open_tree(2) with a copy", open_tree_clone, 0},
    {"move-mount", SECCOMP | CAPABILITIES, "", "move_mount(2)", move_mount_call, 0},
    {"mount-setattr", SECCOMP | CAPABILITIES, "", "mount_setattr(2), which makes read-only mounts writable", mount_setattr_call, 0},
    {"pivot-root", SECCOMP | CAPABILITIES, "", "pivot_root(2)", pivot_root_call, 0},
    {"chroot", SECCOMP | CAPABILITIES, "", "chroot(2), the first half of the old way out", chroot_call, 0},
    {"setns-net", SECCOMP | CAPABILITIES, "", "setns(2) into a network namespace", setns_net, 0},
    {"setns-mnt", SECCOMP | CAPABILITIES, "", "setns(2) into a mount namespace", setns_mnt, 0},
    {"setns-pid", SECCOMP | CAPABILITIES, "", "setns(2) into a pid namespace", setns_pid, 0},
    {"setns-user", SECCOMP, "", "setns(2) into a user namespace", setns_user, 0},
    {"unshare-user", SECCOMP, "", "unshare(2) of a user namespace", unshare_user, 0},
    {"unshare-mount", SECCOMP | CAPABILITIES, "", "unshare(2) of a mount namespace", unshare_mount, 0},
    {"unshare-pid", SECCOMP | CAPABILITIES, "", "unshare(2) of a pid namespace", unshare_pid, 0},
    {"unshare-net", SECCOMP | CAPABILITIES, "", "unshare(2) of a network namespace", unshare_net, 0},
    {"unshare-ipc", SECCOMP | CAPABILITIES, "", "unshare(2) of an IPC namespace", unshare_ipc, 0},
    {"unshare-uts", SECCOMP | CAPABILITIES, "", "unshare(2) of a UTS namespace", unshare_uts, 0},
    {"unshare-cgroup", SECCOMP | CAPABILITIES, "CVE-2022-0492", "unshare(2) of a cgroup namespace", unshare_cgroup, 0},
    {"unshare-time", SECCOMP | CAPABILITIES, "", "unshare(2) of a time namespace", unshare_time, 0},
    {"clone-user", SECCOMP, "", "clone(2) with CLONE_NEWUSER", clone_user, 0},
    {"clone3-user", SECCOMP, "", "clone3(2) with CLONE_NEWUSER, whose flags no filter sees", clone3_user, 0},
    {"clone3-mount", SECCOMP | CAPABILITIES, "", "clone3(2) with CLONE_NEWNS", clone3_mount, 0},
    {"nested-overlay", SECCOMP, "CVE-2023-0386 CVE-2021-3493 CVE-2023-2640", "an overlay in a user namespace of its own", nested_overlay, 0},
    {"nested-cgroup", SECCOMP, "CVE-2022-0492", "a v1 hierarchy (release_agent) in a user namespace of its own", nested_cgroup, 0},
    {"listmount", SECCOMP, "", "listmount(2): what is mounted below the root", listmount_call, 0},
    {"sethostname", SECCOMP | CAPABILITIES, "", "sethostname(2)", sethostname_call, 0},
    {0},
};
