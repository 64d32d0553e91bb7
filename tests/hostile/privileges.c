/* Who one is: ids, capabilities, setuid files, priorities. */
#include "hostile.h"
#include <linux/capability.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/xattr.h>

static void status_line(const char *name, char *value, size_t size) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    *value = 0;
    while (status && fgets(line, sizeof line, status))
        if (strncmp(line, name, strlen(name)) == 0) {
            snprintf(value, size, "%s", line + strlen(name) + strspn(line + strlen(name), ": \t"));
            value[strcspn(value, "\n")] = 0;
        }
}

static void identity(void) {
    char value[128];
    FILE *map = fopen("/proc/self/uid_map", "r");
    unsigned inside = 1, outside = 0, count = 0;
    if (!map || fscanf(map, "%u %u %u", &inside, &outside, &count) != 3) absent("no /proc/self/uid_map");
    if (outside < 65536) escaped("root inside is uid %u of the host", outside);
    status_line("NSpid", value, sizeof value);
    refused("root inside is uid %u outside, of %u", outside, count);
}

static void bounding(void) {
    char value[64];
    status_line("CapBnd", value, sizeof value);
    /* chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service setfcap */
    unsigned long long held = strtoull(value, NULL, 16), may = 0x800005fbULL;
    if (held & ~may) escaped("the bounding set holds more: %s", value);
    refused("bounding set %s", value);
}

static void inheritable(void) {
    char inherits[64], ambient[64];
    status_line("CapInh", inherits, sizeof inherits);
    status_line("CapAmb", ambient, sizeof ambient);
    if (strtoull(inherits, NULL, 16) || strtoull(ambient, NULL, 16)) escaped("inheritable %s, ambient %s", inherits, ambient);
    refused("inheritable and ambient sets are empty");
}

static void new_privileges(void) {
    if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1) refused("no_new_privs is set");
    escaped("no_new_privs is not set");
}

/* Groups of whoever started the launcher, or root's beside the image's user. */
static void groups(void) {
    gid_t all[64];
    int count = getgroups(64, all);
    for (int one = 0; one < count; one++)
        if (all[one] != getgid()) escaped("member of group %u too", all[one]);
    refused("member of its own group %u alone", getgid());
}

/* Variables of the server, which may hold what isn't the app's. */
static void environment(void) {
    extern char **environ;
    static const char *const foreign[] = {"UTSUWA_", "SUDO_", "INVOCATION_ID", "NOTIFY_SOCKET", "LD_", "SSH_", "RUST_", "CARGO"};
    for (char **one = environ; *one; one++)
        for (size_t prefix = 0; prefix < sizeof foreign / sizeof *foreign; prefix++)
            if (strncmp(*one, foreign[prefix], strlen(foreign[prefix])) == 0) escaped("the environment has %.40s", *one);
    refused("the environment holds nothing of the launcher's");
}

/* Executes `path` as an ordinary user; answers the effective uid it had. */
static int become(const char *path) {
    int ends[2];
    if (pipe(ends) < 0) refused("pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        if (setresgid(1000, 1000, 1000) < 0 || setresuid(1000, 1000, 1000) < 0) _exit(1);
        dup2(ends[1], 1);
        execl(path, path, "ids", NULL);
        _exit(1);
    }
    close(ends[1]);
    char text[32] = "";
    ssize_t length = read(ends[0], text, sizeof text - 1);
    waitpid(child, NULL, 0);
    if (length <= 0) refused("execute %s as uid 1000: it gave no answer", path);
    return atoi(text);
}

static void setuid_image(void) {
    struct stat there;
    if (stat("/srv/setuid", &there) < 0) absent("the image has no /srv/setuid");
    if (!(there.st_mode & S_ISUID)) refused("its setuid bit was taken away");
    int uid = become("/srv/setuid");
    if (uid != 1000) escaped("a setuid file of the image made uid 1000 to uid %d", uid);
    refused("the setuid file ran as uid 1000");
}

static void copy_program(const char *path) {
    char bytes[65536];
    int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0755);
    if (from < 0 || to < 0) refused("copy the program: %s", strerror(errno));
    for (ssize_t length; (length = read(from, bytes, sizeof bytes)) > 0;)
        if (write(to, bytes, (size_t)length) != length) refused("copy the program: %s", strerror(errno));
    close(to);
}

static void setuid_made(void) {
    copy_program("/tmp/setuid");
    if (chmod("/tmp/setuid", 04755) < 0) refused("chmod 4755: %s", strerror(errno));
    int uid = become("/tmp/setuid");
    unlink("/tmp/setuid");
    if (uid != 1000) escaped("a setuid file made inside turned uid 1000 to uid %d", uid);
    refused("the setuid file ran as uid 1000");
}

static void regain_root(void) {
    if (setresuid(1000, 1000, 1000) < 0) refused("become uid 1000: %s", strerror(errno));
    judge(setresuid(0, 0, 0), "become root again");
}

static void unmapped_user(void) { judge(setresuid(268435456, 268435456, 268435456), "become the owner of image files on disk"); }

static void realtime(void) {
    struct sched_param parameters = {.sched_priority = 1};
    long result = sched_setscheduler(0, SCHED_FIFO, &parameters);
    int why = errno;
    parameters.sched_priority = 0;
    if (result == 0) sched_setscheduler(0, SCHED_OTHER, &parameters);
    errno = why;
    judge(result, "real-time scheduling");
}
static void niceness(void) { judge(setpriority(PRIO_PROCESS, 0, -20), "the highest priority"); }
static void io_priority(void) { judge(syscall(SYS_ioprio_set, 1, 0, 1 << 13), "real-time input and output"); }
static void lock_memory(void) {
    size_t size = 256 << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) refused("map: %s", strerror(errno));
    judge(syscall(SYS_mlock2, memory, size, 1 /* on fault: takes none */), "lock 256 MiB in memory");
}
static void core_size(void) {
    struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
    judge(setrlimit(RLIMIT_CORE, &unlimited), "core dumps of any size");
}

/* The kernel takes the first victim by this number when the host has no memory left. */
static void oom_score(void) {
    int file = open("/proc/self/oom_score_adj", O_RDWR);
    char before[16] = "";
    if (file < 0 || read(file, before, sizeof before - 1) < 0) absent("no oom_score_adj");
    if (pwrite(file, "-500", 4, 0) < 0) refused("oom_score_adj from %d to -500: %s", atoi(before), strerror(errno));
    escaped("killed later than the host's own services");
}

/* From what the launcher gave it to what the host's services have: refused when root with CAP_SYS_RESOURCE gave it. */
static void oom_default(void) {
    needed("resource");
    int file = open("/proc/self/oom_score_adj", O_RDWR);
    char before[16] = "";
    if (file < 0 || read(file, before, sizeof before - 1) < 0) absent("no oom_score_adj");
    if (pwrite(file, "0", 1, 0) < 0) refused("oom_score_adj from %d to 0: %s", atoi(before), strerror(errno));
    escaped("killed no earlier than the host's own services");
}

const struct attempt privilege_attempts[] = {
    {"identity", USER, "", "which user of the host root inside is", identity, 0},
    {"bounding", CAPABILITIES, "", "capabilities it could gain", bounding, 0},
    {"inheritable", CAPABILITIES, "CVE-2022-24769 CVE-2022-29162", "inheritable and ambient capabilities at start", inheritable, 0},
    {"no-new-privs", CAPABILITIES, "", "no_new_privs", new_privileges, 0},
    {"groups", START, "CVE-2022-36109 CVE-2022-2995 CVE-2023-25173", "groups beside its own", groups, 0},
    {"environment", START, "CVE-2021-21334", "variables that aren't its own", environment, 0},
    {"setuid-image", CAPABILITIES | MASKS, "", "a setuid file of the image, as an ordinary user", setuid_image, 0},
    {"setuid-made", CAPABILITIES | MASKS, "", "a setuid file made inside, as an ordinary user", setuid_made, 0},
    {"regain-root", KERNEL, "", "root again after giving it up", regain_root, 0},
    {"image-owner", USER, "CVE-2021-41091", "become the user who owns unpacked images on the host", unmapped_user, 0},
    {"realtime", USER | CAPABILITIES | NAMESPACES, "", "real-time scheduling", realtime, 0},
    {"nice", USER | CAPABILITIES, "", "priority above the host's services", niceness, 0},
    {"ioprio", USER | CAPABILITIES, "", "real-time input and output", io_priority, 0},
    {"mlock", USER | CAPABILITIES, "", "memory that can't be taken back", lock_memory, 0},
    {"core-size", CGROUP, "", "core dumps on the host", core_size, 0},
    {"oom-score", USER | CAPABILITIES, "", "be killed last when the host has no memory", oom_score, 0},
    {"oom-default", START, "", "be killed no earlier than the host's services", oom_default, 0},
    {0},
};
