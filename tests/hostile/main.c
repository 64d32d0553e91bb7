/* The hostile program: runs as root in an instance and tries to get out, one attack per request.
 *
 *   hostile                    serve: GET /try/NAME?parameter=value → {"name":…,"walls":[…],"outcome":…,"detail":…}
 *   hostile try NAME [k=v …]   the same without a server, on standard output: any launcher can run it
 *   hostile all [k=v …]        every attempt, one after the other
 *   hostile list               the table of attempts, one JSON object a line
 *   hostile bait               things to attack from elsewhere; see neighbours.c
 *   hostile outside            the attempt `cwd` where it succeeds, as a control
 *
 * Outcomes: "refused" (it failed inside), "contained" (it went as far as its own limit), "escaped" (it got through, or past the
 * check that should have stopped it), "absent" (this kernel has nothing of the kind).
 *
 * Each attempt runs in a process of its own: one that is killed for trying counts as refused. Nothing here does harm when it
 * succeeds: what would change the machine is opened and not written, or called with arguments that are refused after the
 * check of rights. So a red test leaves the machine as it was. Knows nothing of cgroup versions or of the launcher. */
#include "hostile.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

int bait(void);

static const struct attempt *const groups[] = {mount_attempts,   kernel_attempts,    file_attempts, privilege_attempts,
                                               network_attempts, neighbour_attempts, bomb_attempts};
static const char *const wall_names[] = {"user-namespace", "seccomp", "capabilities", "masks", "cgroup",
                                         "egress",         "namespaces", "start",     "kernel"};
static int result_pipe = -1;
static char parameters[1024];
char inherited[512];

static _Noreturn void answer(char kind, const char *format, va_list arguments) {
    char text[1024] = {kind};
    vsnprintf(text + 1, sizeof text - 1, format, arguments);
    if (write(result_pipe, text, strlen(text)) < 0) _exit(1);
    /* Keeps what it took, for the test to look at others meanwhile. */
    close(result_pipe);
    const char *hold = parameter("hold");
    if (hold) sleep((unsigned)atoi(hold));
    _exit(0);
}

#define ENDING(name, kind)                                                                                             \
    void name(const char *format, ...) {                                                                               \
        va_list arguments;                                                                                             \
        va_start(arguments, format);                                                                                   \
        answer(kind, format, arguments);                                                                               \
    }
ENDING(refused, 'r')
ENDING(contained, 'c')
ENDING(escaped, 'e')
ENDING(absent, 'a')

void judge(long result, const char *what) {
    if (result < 0) refused("%s: %s", what, strerror(errno));
    escaped("%s succeeded", what);
}

void judge_door(long result, const char *what) {
    if (result >= 0) escaped("%s succeeded", what);
    switch (errno) {
    case EPERM:
    case EACCES:
    case EROFS:
    case ENOSYS: refused("%s: %s", what, strerror(errno));
    default: escaped("%s: rights were granted, only the arguments were not (%s)", what, strerror(errno));
    }
}

void judge_writable(const char *path) {
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 && errno == ENOENT) absent("%s is not there", path);
    if (file < 0) refused("open %s for writing: %s", path, strerror(errno));
    /* A device in place of the file is what hides it. */
    struct stat there;
    if (fstat(file, &there) == 0 && S_ISCHR(there.st_mode) && strncmp(path, "/dev/", 5) != 0) refused("%s is covered", path);
    escaped("%s opened for writing", path);
}

void judge_readable(const char *path) {
    struct stat there;
    if (stat(path, &there) < 0 && errno == ENOENT) absent("%s is not there", path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) refused("open %s: %s", path, strerror(errno));
    if (S_ISDIR(there.st_mode)) {
        DIR *folder = fdopendir(file);
        for (struct dirent *entry; folder && (entry = readdir(folder));)
            if (entry->d_name[0] != '.') escaped("%s shows %s", path, entry->d_name);
        refused("%s is empty", path);
    }
    char bytes[256];
    ssize_t length = read(file, bytes, sizeof bytes);
    if (length < 0) refused("read %s: %s", path, strerror(errno));
    if (length == 0) refused("%s is empty", path);
    escaped("%s shows its content", path);
}

const char *parameter(const char *name) {
    static char value[256];
    size_t length = strlen(name);
    for (const char *at = parameters; at && *at; at = strchr(at, '&') ? strchr(at, '&') + 1 : NULL) {
        if (strncmp(at, name, length) != 0 || at[length] != '=') continue;
        snprintf(value, sizeof value, "%.*s", (int)strcspn(at + length + 1, "& "), at + length + 1);
        return value;
    }
    return NULL;
}

const char *needed(const char *name) {
    const char *value = parameter(name);
    if (!value) absent("nothing to attack: parameter %s is missing", name);
    return value;
}

static const struct attempt *find(const char *name) {
    for (size_t group = 0; group < sizeof groups / sizeof *groups; group++)
        for (const struct attempt *one = groups[group]; one->name; one++)
            if (strcmp(one->name, name) == 0) return one;
    return NULL;
}

static void print_text(FILE *out, const char *text) {
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') fputc('\\', out);
        if ((unsigned char)*text < ' ') fprintf(out, "\\u%04x", *text);
        else fputc(*text, out);
    }
    fputc('"', out);
}

static void print_head(FILE *out, const struct attempt *one) {
    fprintf(out, "{\"name\":\"%s\",\"walls\":[", one->name);
    const char *comma = "";
    for (size_t wall = 0; wall < sizeof wall_names / sizeof *wall_names; wall++)
        if (one->walls & 1 << wall) fprintf(out, "%s\"%s\"", comma, wall_names[wall]), comma = ",";
    fprintf(out, "]");
}

static void list(void) {
    for (size_t group = 0; group < sizeof groups / sizeof *groups; group++)
        for (const struct attempt *one = groups[group]; one->name; one++) {
            print_head(stdout, one);
            fprintf(stdout, ",\"cve\":\"%s\",\"what\":", one->cve);
            print_text(stdout, one->what);
            fprintf(stdout, "}\n");
        }
}

/* In a process of its own, with a group of its own so that whatever it leaves behind ends with it. */
static void attempt(FILE *out, const struct attempt *one) {
    int ends[2];
    char text[1024] = "";
    size_t length = 0;
    int status = 0, late = 0;
    if (pipe2(ends, O_CLOEXEC) < 0) {
        fprintf(out, "{\"name\":\"%s\",\"outcome\":\"broken\",\"detail\":\"pipe: %s\"}\n", one->name, strerror(errno));
        return;
    }
    signal(SIGCHLD, SIG_DFL);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        /* Who is to hold what it took must outlive the request. */
        if (parameter("hold") && (fork() > 0 || setsid() < 0)) _exit(0);
        result_pipe = ends[1];
        one->run();
        refused("it came to no end");
    }
    int forked = errno;
    close(ends[1]);
    struct pollfd polled = {.fd = ends[0], .events = POLLIN};
    while (child > 0 && length < sizeof text - 1) {
        if (poll(&polled, 1, (one->seconds ? one->seconds : 10) * 1000) == 0) {
            late = 1;
            break;
        }
        ssize_t got = read(ends[0], text + length, sizeof text - 1 - length);
        if (got <= 0) break;
        length += (size_t)got;
    }
    close(ends[0]);
    if (child > 0) {
        kill(-child, SIGKILL);
        if (late) kill(child, SIGKILL);
        waitpid(child, &status, 0);
    }
    char detail[128];
    const char *outcome = "refused", *said = detail;
    if (child < 0) outcome = "broken", snprintf(detail, sizeof detail, "fork: %s", strerror(forked));
    else if (length > 0) {
        said = text + 1;
        outcome = *text == 'r' ? "refused" : *text == 'c' ? "contained" : *text == 'a' ? "absent" : "escaped";
    } else if (late) outcome = "contained", snprintf(detail, sizeof detail, "no end in its time");
    else if (one->walls == CGROUP && WTERMSIG(status) == SIGKILL) outcome = "contained", snprintf(detail, sizeof detail, "killed at its limit");
    else snprintf(detail, sizeof detail, "killed by signal %d", WTERMSIG(status));
    print_head(out, one);
    fprintf(out, ",\"outcome\":\"%s\",\"detail\":", outcome);
    print_text(out, said);
    fprintf(out, "}\n");
}

static void serve_one(int connection) {
    char request[2048] = "";
    size_t length = 0;
    while (length < sizeof request - 1 && !strstr(request, "\r\n\r\n")) {
        ssize_t got = read(connection, request + length, sizeof request - 1 - length);
        if (got <= 0) return;
        request[length += (size_t)got] = 0;
    }
    char *body = NULL;
    size_t size = 0;
    const char *status = "200 OK";
    FILE *out = open_memstream(&body, &size);
    char name[64] = "";
    if (sscanf(request, "GET /try/%63[a-z0-9-]", name) == 1) {
        char *query = strchr(request, '?');
        if (query && query < strstr(request, "\r\n")) snprintf(parameters, sizeof parameters, "%.*s", (int)strcspn(query + 1, " "), query + 1);
        const struct attempt *one = find(name);
        if (one) attempt(out, one);
        else status = "404 Not Found", fprintf(out, "no attempt %s\n", name);
    } else fprintf(out, "ok\n");
    fclose(out);
    dprintf(connection, "HTTP/1.1 %s\r\ncontent-length: %zu\r\nconnection: close\r\n\r\n", status, size);
    if (write(connection, body, size) < 0) _exit(1);
}

static int serve(void) {
    const char *port = getenv("PORT");
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, zero = 0;
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(port ? port : "8080"))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) < 0 || listen(listener, 256) < 0) {
        perror("listen");
        return 1;
    }
    /* Children are nobody's: the kernel reaps them. */
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0) continue;
        pid_t child = fork();
        if (child == 0) {
            close(listener);
            serve_one(connection);
            shutdown(connection, SHUT_WR);
            _exit(0);
        }
        if (child < 0) dprintf(connection, "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        close(connection);
    }
}

/* Before anything of our own is open. */
static void note_inherited(void) {
    for (int number = 3; number < 1024; number++) {
        char link[64], target[256];
        snprintf(link, sizeof link, "/proc/self/fd/%d", number);
        ssize_t length = readlink(link, target, sizeof target - 1);
        if (length < 0) continue;
        target[length] = 0;
        size_t used = strlen(inherited);
        snprintf(inherited + used, sizeof inherited - used, "%d=%s ", number, target);
    }
}

int main(int count, char **words) {
    note_inherited();
    const char *command = count > 1 ? words[1] : "serve";
    if (strcmp(command, "serve") == 0) return serve();
    if (strcmp(command, "bait") == 0) return bait();
    if (strcmp(command, "ids") == 0) {
        /* Executed by attempts on setuid files: who it became. */
        printf("%d\n", geteuid());
        return 0;
    }
    if (strcmp(command, "list") == 0) {
        list();
        return 0;
    }
    if (strcmp(command, "outside") == 0) {
        /* A control: the root is below the working directory, as a careless launcher would leave it. */
        if (chdir("/") < 0 || chroot("/srv") < 0) return 1;
        attempt(stdout, find("cwd"));
        return 0;
    }
    int all = strcmp(command, "all") == 0;
    const struct attempt *one = count > 2 && strcmp(command, "try") == 0 ? find(words[2]) : NULL;
    if (!one && !all) {
        fprintf(stderr, "usage: hostile [serve | list | bait | outside | all [PARAMETER=VALUE …] | try NAME [PARAMETER=VALUE …]]\n");
        return 2;
    }
    for (int word = all ? 2 : 3; word < count; word++) {
        size_t used = strlen(parameters);
        snprintf(parameters + used, sizeof parameters - used, "%s%s", used ? "&" : "", words[word]);
    }
    for (size_t group = 0; all && group < sizeof groups / sizeof *groups; group++)
        for (one = groups[group]; one->name; one++) attempt(stdout, one), fflush(stdout);
    if (!all) attempt(stdout, one);
    return 0;
}
