/* Calls that reach into the kernel, and its files. */
#include "hostile.h"
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/quota.h>
#include <sys/reboot.h>
#include <sys/swap.h>
#include <sys/time.h>
#include <sys/timex.h>
#if defined(__x86_64__)
#include <sys/io.h>
#endif

static void bpf_map(void) {
    union bpf_attr attributes = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    judge(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes), "bpf: a map");
}

static void bpf_program(void) {
    struct bpf_insn code[] = {{.code = 0xb7, .dst_reg = 0}, {.code = 0x95}};
    union bpf_attr attributes = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insn_cnt = 2, .insns = (uintptr_t)code, .license = (uintptr_t) "GPL"};
    judge(syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof attributes), "bpf: a program");
}

static void perf(int exclude_kernel, const char *what) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .config = PERF_COUNT_SW_CPU_CLOCK};
    attributes.exclude_kernel = attributes.exclude_hv = exclude_kernel & 1;
    judge(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0), what);
}
static void perf_self(void) { perf(1, "perf_event_open of itself"); }
static void perf_kernel(void) { perf(0, "perf_event_open of the kernel"); }

static void userfaultfd_call(void) { judge(syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */), "userfaultfd"); }

static void io_uring_call(void) {
    struct io_uring_params parameters = {0};
    judge(syscall(SYS_io_uring_setup, 4, &parameters), "io_uring_setup");
}

static void aio_call(void) {
    unsigned long context = 0;
    judge(syscall(SYS_io_setup, 128, &context), "io_setup");
}

static void add_key_call(void) { judge(syscall(SYS_add_key, "user", "hostile", "x", 1, KEY_SPEC_PROCESS_KEYRING), "add_key"); }
static void keyctl_call(void) { judge(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, "hostile"), "keyctl: join a session keyring"); }
static void request_key_call(void) { judge_door(syscall(SYS_request_key, "user", "hostile", NULL, 0), "request_key"); }

static void kexec_call(void) { judge_door(syscall(SYS_kexec_load, 0, 17, NULL, ~0UL), "kexec_load"); }
static void init_module_call(void) { judge_door(syscall(SYS_init_module, "x", 1, ""), "init_module"); }
static void finit_module_call(void) { judge_door(syscall(SYS_finit_module, -1, "", 0), "finit_module"); }
static void delete_module_call(void) { judge_door(syscall(SYS_delete_module, "no_such_module", O_NONBLOCK), "delete_module"); }
static void reboot_call(void) { judge_door(syscall(SYS_reboot, 0, 0, RB_AUTOBOOT, NULL), "reboot"); }
static void swapon_call(void) { judge_door(swapon("/nowhere", 0), "swapon"); }
static void acct_call(void) { judge_door(syscall(SYS_acct, "/nowhere"), "acct"); }
static void settimeofday_call(void) { judge(syscall(SYS_settimeofday, NULL, NULL), "settimeofday of nothing"); }
static void syslog_call(void) { char text[64]; judge(syscall(SYS_syslog, 3, text, sizeof text), "syslog: the kernel's messages"); }
static void vhangup_call(void) { judge(syscall(SYS_vhangup), "vhangup"); }
static void quotactl_call(void) { judge_door(syscall(SYS_quotactl, QCMD(Q_QUOTAON, USRQUOTA), "/nowhere", 0, NULL), "quotactl"); }

static void adjtimex_call(void) {
    struct timex now = {0};
    if (syscall(SYS_adjtimex, &now) < 0) refused("read the clock's state: %s", strerror(errno));
    /* Writes what is there already. */
    now.modes = ADJ_TICK;
    judge(syscall(SYS_adjtimex, &now), "adjtimex: set the tick");
}

static void fanotify_call(void) { judge(syscall(SYS_fanotify_init, FAN_CLASS_NOTIF | FAN_REPORT_FID, 0), "fanotify_init"); }
static void personality_call(void) { judge(personality(READ_IMPLIES_EXEC), "personality: readable memory is executable"); }
static void lookup_handle(void) {
    struct { struct file_handle head; unsigned char bytes[128]; } handle = {.head.handle_bytes = 128};
    int mount_id, root = open("/", O_RDONLY | O_DIRECTORY);
    if (name_to_handle_at(AT_FDCWD, "/proc/self/ns/net", &handle.head, &mount_id, 0) < 0) handle.head.handle_bytes = 8, handle.head.handle_type = 1;
    judge_door(open_by_handle_at(root, &handle.head, O_RDONLY), "open_by_handle_at");
}

static void iopl_call(void) {
#if defined(__x86_64__)
    judge(iopl(3), "iopl");
#else
    absent("no port input and output on this architecture");
#endif
}

/* The 32-bit entry has numbers of its own: a filter that looks at numbers only would judge another call. */
static void int80_call(void) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    if (result <= 0) refused("getpid by int 0x80: %ld", result);
    escaped("a 32-bit call was answered");
#else
    absent("no 32-bit entry of this kind on this architecture");
#endif
}

static void move_pages_call(void) { void *page = &errno; int status; judge(syscall(SYS_move_pages, 0, 1, &page, NULL, &status, 0), "move_pages"); }
static void mbind_call(void) { judge(syscall(SYS_set_mempolicy, 0, NULL, 0), "set_mempolicy"); }

/* Who may not see them is shown zeros. */
static void addresses(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) refused("open %s: %s", path, strerror(errno));
    unsigned long address = 0;
    char line[512];
    for (int number = 0; number < 64 && address == 0 && fgets(line, sizeof line, file); number++) address = strtoul(line, NULL, 16);
    if (address == 0) refused("%s shows no address", path);
    escaped("%s shows addresses", path);
}
static void kallsyms(void) { addresses("/proc/kallsyms"); }
static void iomem(void) { addresses("/proc/iomem"); }

static void sys_write(const char *path) { judge_writable(path); }
static void core_pattern(void) { sys_write("/proc/sys/kernel/core_pattern"); }
static void modprobe_path(void) { sys_write("/proc/sys/kernel/modprobe"); }
static void sys_net(void) { sys_write("/proc/sys/net/ipv4/ip_forward"); }
static void sys_vm(void) { sys_write("/proc/sys/vm/overcommit_memory"); }
/* Anybody may open it; writes what is there already. */
static void ns_last_pid(void) {
    char text[16];
    int file = open("/proc/sys/kernel/ns_last_pid", O_RDWR);
    if (file < 0 && errno == ENOENT) absent("no ns_last_pid");
    if (file < 0) refused("open ns_last_pid: %s", strerror(errno));
    ssize_t length = read(file, text, sizeof text);
    judge(pwrite(file, text, (size_t)(length > 0 ? length : 0), 0), "write ns_last_pid");
}
static void sysrq(void) { sys_write("/proc/sysrq-trigger"); }
static void irq(void) { sys_write("/proc/irq/default_smp_affinity"); }
static void uevent_helper(void) { sys_write("/sys/kernel/uevent_helper"); }
static void sysfs_write(void) { sys_write("/sys/kernel/profiling"); }
static void sysfs_module(void) { sys_write("/sys/module/printk/parameters/time"); }
static void sysfs_net(void) { sys_write("/sys/class/net/lo/ifalias"); }
static void binfmt(void) { sys_write("/proc/sys/fs/binfmt_misc/register"); }
static void kcore(void) { judge_readable("/proc/kcore"); }
static void kmsg(void) { judge_readable("/proc/kmsg"); }
/* Shows no keys but those one may see: that it is there at all is what counts. */
static void proc_keys(void) {
    struct stat there;
    if (stat("/proc/keys", &there) < 0) absent("no /proc/keys");
    if (S_ISREG(there.st_mode)) escaped("/proc/keys is not covered");
    refused("/proc/keys is covered");
}
static void timer_list(void) { judge_readable("/proc/timer_list"); }
static void interrupts(void) { judge_readable("/proc/interrupts"); }
static void firmware(void) { judge_readable("/sys/firmware"); }
static void proc_acpi(void) { judge_readable("/proc/acpi"); }
static void kpageflags(void) { judge_readable("/proc/kpageflags"); }
static void slabinfo(void) { judge_readable("/proc/slabinfo"); }
static void vmallocinfo(void) { judge_readable("/proc/vmallocinfo"); }

#define OF_THE_HOST (SECCOMP | CAPABILITIES | USER)
const struct attempt kernel_attempts[] = {
    {"bpf-map", OF_THE_HOST, "", "bpf(2): a map", bpf_map, 0},
    {"bpf-program", OF_THE_HOST, "CVE-2020-8835 CVE-2021-3490", "bpf(2): a program for the verifier", bpf_program, 0},
    {"perf-self", SECCOMP, "", "perf_event_open(2) of itself", perf_self, 0},
    {"perf-kernel", OF_THE_HOST, "", "perf_event_open(2) of the kernel", perf_kernel, 0},
    {"userfaultfd", SECCOMP, "", "userfaultfd(2), which stops the kernel where a race wants it", userfaultfd_call, 0},
    {"io-uring", SECCOMP, "CVE-2022-29582 CVE-2023-2598", "io_uring_setup(2), whose calls no filter sees", io_uring_call, 0},
    {"aio", SECCOMP, "", "io_setup(2): the kernel has places for 65,536 events, for all users together", aio_call, 0},
    {"add-key", SECCOMP, "", "add_key(2)", add_key_call, 0},
    {"keyctl", SECCOMP, "", "keyctl(2): keyrings are not per namespace", keyctl_call, 0},
    {"request-key", SECCOMP, "", "request_key(2), which calls a program on the host", request_key_call, 0},
    {"kexec", OF_THE_HOST, "", "kexec_load(2)", kexec_call, 0},
    {"init-module", OF_THE_HOST, "", "init_module(2)", init_module_call, 0},
    {"finit-module", OF_THE_HOST, "", "finit_module(2)", finit_module_call, 0},
    {"delete-module", OF_THE_HOST, "", "delete_module(2)", delete_module_call, 0},
    {"reboot", SECCOMP | CAPABILITIES, "", "reboot(2)", reboot_call, 0},
    {"swapon", OF_THE_HOST, "", "swapon(2)", swapon_call, 0},
    {"acct", OF_THE_HOST, "", "acct(2)", acct_call, 0},
    {"settimeofday", OF_THE_HOST, "", "settimeofday(2)", settimeofday_call, 0},
    {"adjtimex", CAPABILITIES | USER, "", "adjtimex(2) setting the host's clock", adjtimex_call, 0},
    {"syslog", OF_THE_HOST, "", "syslog(2): the kernel's messages", syslog_call, 0},
    {"quotactl", SECCOMP, "", "quotactl(2)", quotactl_call, 0},
    {"vhangup", OF_THE_HOST, "", "vhangup(2)", vhangup_call, 0},
    {"fanotify", SECCOMP, "", "fanotify_init(2)", fanotify_call, 0},
    {"personality", SECCOMP, "", "personality(2) that makes all memory executable", personality_call, 0},
    {"file-handle", OF_THE_HOST, "", "open_by_handle_at(2): files by number instead of by path", lookup_handle, 0},
    {"iopl", OF_THE_HOST, "", "iopl(2): the machine's ports", iopl_call, 0},
    {"int80", SECCOMP, "", "a system call by the 32-bit entry", int80_call, 0},
    {"move-pages", SECCOMP, "", "move_pages(2): where memory lies", move_pages_call, 0},
    {"set-mempolicy", SECCOMP, "", "set_mempolicy(2)", mbind_call, 0},
    {"kallsyms", CAPABILITIES | USER, "", "addresses of the kernel in /proc/kallsyms", kallsyms, 0},
    {"core-pattern", MASKS | USER, "CVE-2022-0811 CVE-2025-31133 CVE-2025-52881", "/proc/sys/kernel/core_pattern for writing: a program the host runs as root", core_pattern, 0},
    {"modprobe-path", MASKS | USER, "", "/proc/sys/kernel/modprobe for writing", modprobe_path, 0},
    {"sys-net", MASKS | CAPABILITIES, "CVE-2022-0811", "/proc/sys/net for writing, which belongs to the namespace's administrator", sys_net, 0},
    {"sys-vm", MASKS | USER, "", "/proc/sys/vm for writing", sys_vm, 0},
    {"ns-last-pid", MASKS | CAPABILITIES, "", "/proc/sys/kernel/ns_last_pid for writing", ns_last_pid, 0},
    {"binfmt-misc", MASKS | USER | NAMESPACES, "", "/proc/sys/fs/binfmt_misc/register for writing", binfmt, 0},
    {"sysrq", MASKS | USER, "CVE-2025-31133 CVE-2025-52881", "/proc/sysrq-trigger for writing", sysrq, 0},
    {"irq", MASKS | USER, "", "/proc/irq for writing", irq, 0},
    {"uevent-helper", MASKS | USER, "", "/sys/kernel/uevent_helper for writing: a program the host runs as root", uevent_helper, 0},
    {"sysfs-kernel", MASKS | USER, "", "/sys/kernel for writing", sysfs_write, 0},
    {"sysfs-module", MASKS | USER, "", "/sys/module for writing", sysfs_module, 0},
    {"sysfs-net", MASKS | USER, "", "/sys/class/net for writing", sysfs_net, 0},
    {"kcore", MASKS | USER | CAPABILITIES, "", "the host's memory in /proc/kcore", kcore, 0},
    {"kmsg", USER | CAPABILITIES, "", "the kernel's messages in /proc/kmsg", kmsg, 0},
    {"proc-keys", MASKS, "", "/proc/keys", proc_keys, 0},
    {"timer-list", MASKS | USER, "", "/proc/timer_list: the host's processes and addresses of the kernel", timer_list, 0},
    {"interrupts", MASKS, "", "/proc/interrupts: keystrokes and work of others by their timing", interrupts, 0},
    {"firmware", MASKS, "", "/sys/firmware", firmware, 0},
    {"acpi", MASKS, "", "/proc/acpi", proc_acpi, 0},
    {"kpageflags", USER, "", "/proc/kpageflags: what each page of the host is used for", kpageflags, 0},
    {"slabinfo", USER, "", "/proc/slabinfo", slabinfo, 0},
    {"vmallocinfo", USER, "", "/proc/vmallocinfo: addresses of the kernel", vmallocinfo, 0},
    {"iomem", USER | CAPABILITIES, "", "/proc/iomem: where the kernel lies in memory", iomem, 0},
    {0},
};
