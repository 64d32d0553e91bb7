/* Other instances and the host's processes: signals, memory, sockets, shared memory. `hostile bait`, run on the host or in
 * another instance, is what these attack; its process id and names come as parameters. */
#include "hostile.h"
#include <dirent.h>
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>

#define KEY 0x76513

static struct sockaddr_un abstract(socklen_t *length) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path + 1, "hostile-bait");
    *length = sizeof(sa_family_t) + 1 + strlen("hostile-bait");
    return address;
}

static const char secret[] = "the bait's secret";

/* Puts out what can be attacked and prints where; ends with its standard input. */
int bait(void) {
    socklen_t length;
    struct sockaddr_un address = abstract(&length);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 8) < 0) perror("abstract socket");
    int memory = shmget(KEY, 4096, IPC_CREAT | 0666);
    if (memory < 0) perror("shmget");
    mqd_t queue = mq_open("/hostile-bait", O_CREAT | O_RDWR, 0666, NULL);
    if (queue < 0) perror("mq_open");
    printf("{\"pid\":%d,\"at\":\"%lx\"}\n", getpid(), (unsigned long)secret);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {}
    shmctl(memory, IPC_RMID, NULL);
    mq_unlink("/hostile-bait");
    return 0;
}

static pid_t victim(void) { return atoi(needed("pid")); }

static void signal_victim(void) { judge(kill(victim(), 0), "signal a process outside"); }
static void pidfd_victim(void) { judge(syscall(SYS_pidfd_open, victim(), 0), "pidfd_open of a process outside"); }

static void trace_victim(void) {
    pid_t pid = victim();
    long result = ptrace(PTRACE_SEIZE, pid, 0, 0);
    if (result == 0) ptrace(PTRACE_DETACH, pid, 0, 0);
    judge(result, "trace a process outside");
}

static void read_victim(void) {
    pid_t pid = victim();
    char bytes[8];
    struct iovec here = {bytes, sizeof bytes}, there = {(void *)strtoul(needed("at"), NULL, 16), sizeof bytes};
    judge(process_vm_readv(pid, &here, 1, &there, 1, 0), "read memory of a process outside");
}

static void steal_descriptor(void) {
    int process = (int)syscall(SYS_pidfd_open, victim(), 0);
    if (process < 0) refused("pidfd_open: %s", strerror(errno));
    judge(syscall(SYS_pidfd_getfd, process, 0, 0), "take a descriptor of a process outside");
}

static void limits_of_victim(void) { judge(syscall(SYS_prlimit64, victim(), 7, NULL, (char[16]){0}), "read limits of a process outside"); }

static void see_victim(void) {
    char path[64], line[128] = "";
    snprintf(path, sizeof path, "/proc/%d/cmdline", victim());
    int file = open(path, O_RDONLY);
    if (file < 0) refused("open %s: %s", path, strerror(errno));
    if (read(file, line, sizeof line - 1) < 0) refused("read %s: %s", path, strerror(errno));
    escaped("%s shows %s", path, line);
}

static void abstract_connect(void) {
    needed("pid");
    socklen_t length;
    struct sockaddr_un address = abstract(&length);
    judge(connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, length), "connect to an abstract socket outside");
}

static void abstract_any(void) {
    FILE *sockets = fopen("/proc/net/unix", "r");
    char line[512];
    int seen = 0;
    while (sockets && fgets(line, sizeof line, sockets)) {
        char *name = strchr(line, '@');
        if (!name) continue;
        name[strcspn(name, "\n")] = 0;
        seen++;
        if (strstr(name, "containerd-shim") || strstr(name, "hostile-bait")) escaped("%s is visible", name);
    }
    refused("%d abstract sockets are visible, none from outside", seen);
}

static void shared_memory(void) { needed("pid"); judge(shmget(KEY, 0, 0), "attach shared memory from outside"); }
static void message_queue(void) { needed("pid"); judge(mq_open("/hostile-bait", O_RDONLY), "open a message queue from outside"); }

static void everybody(void) {
    long killed = 0;
    DIR *processes = opendir("/proc");
    for (struct dirent *entry; processes && (entry = readdir(processes));) {
        char path[300], line[256] = "";
        if (atoi(entry->d_name) <= 0) continue;
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int file = open(path, O_RDONLY);
        if (file < 0) continue;
        if (read(file, line, sizeof line - 1) > 0 && !strstr(line, "hostile")) escaped("process %s is visible: %s", entry->d_name, line);
        close(file);
        killed++;
    }
    refused("%ld processes, all its own", killed);
}

/* Says it is PID 1. */
static void false_credentials(void) {
    int ends[2], on = 1;
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0) refused("socketpair: %s", strerror(errno));
    setsockopt(ends[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    struct ucred credentials = {.pid = 1, .uid = getuid(), .gid = getgid()};
    char room[CMSG_SPACE(sizeof credentials)] = "", byte = 0;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof credentials), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS};
    memcpy(CMSG_DATA(head), &credentials, sizeof credentials);
    judge(sendmsg(ends[0], &message, 0), "speak as another process");
}

const struct attempt neighbour_attempts[] = {
    {"signal", NAMESPACES, "", "kill(2) of a process outside", signal_victim, 0},
    {"pidfd-open", NAMESPACES, "", "pidfd_open(2) of a process outside", pidfd_victim, 0},
    {"ptrace", NAMESPACES, "", "ptrace(2) of a process outside", trace_victim, 0},
    {"vm-read", NAMESPACES, "", "process_vm_readv(2) of a process outside", read_victim, 0},
    {"pidfd-getfd", NAMESPACES, "", "pidfd_getfd(2): a descriptor of a process outside", steal_descriptor, 0},
    {"prlimit", NAMESPACES, "", "prlimit(2) of a process outside", limits_of_victim, 0},
    {"proc-pid", NAMESPACES, "", "/proc/PID of a process outside", see_victim, 0},
    {"processes", NAMESPACES, "", "any process that isn't its own", everybody, 0},
    {"abstract-socket", NAMESPACES, "CVE-2020-15257", "connect to an abstract Unix socket outside", abstract_connect, 0},
    {"abstract-names", NAMESPACES, "CVE-2020-15257", "abstract Unix sockets of anybody else in /proc/net/unix", abstract_any, 0},
    {"sysv-memory", NAMESPACES, "", "System V shared memory from outside", shared_memory, 0},
    {"message-queue", NAMESPACES, "", "a POSIX message queue from outside", message_queue, 0},
    {"credentials", CAPABILITIES, "", "say to be another process over a Unix socket", false_credentials, 0},
    {0},
};
