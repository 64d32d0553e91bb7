/* Sockets: which kinds, what of the network may be changed, what may be reached. */
#include "hostile.h"
#include <arpa/inet.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static void kind(int family, int type, int protocol, const char *what) {
    int made = socket(family, type, protocol);
    if (made < 0 && errno == EAFNOSUPPORT) refused("%s: %s", what, strerror(errno));
    judge(made, what);
}
static void packet(void) { kind(AF_PACKET, SOCK_RAW, 0, "a packet socket"); }
static void raw_icmp(void) { kind(AF_INET, SOCK_RAW, IPPROTO_ICMP, "a raw ICMP socket"); }
static void raw_ip(void) { kind(AF_INET, SOCK_RAW, IPPROTO_RAW, "a raw IP socket"); }
static void raw_ip6(void) { kind(AF_INET6, SOCK_RAW, IPPROTO_RAW, "a raw IPv6 socket"); }
static void vsock(void) { kind(AF_VSOCK, SOCK_STREAM, 0, "a socket to the hypervisor"); }
static void alg(void) { kind(AF_ALG, SOCK_SEQPACKET, 0, "a socket to the kernel's ciphers"); }
static void netfilter(void) { kind(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER, "a netfilter socket"); }
static void audit(void) { kind(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT, "an audit socket"); }
static void generic(void) { kind(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC, "a generic netlink socket"); }
static void diag(void) { kind(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG, "a socket that lists sockets"); }

static void rare(void) {
    static const int families[] = {2 + 1, 4, 5, 6, 8, 9, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 26, 29, 30, 31, 33, 34, 35, 36, 37, 39, 41, 43, 44, 45};
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_RAW};
    int asked = 0;
    for (size_t family = 0; family < sizeof families / sizeof *families; family++)
        for (size_t type = 0; type < 4; type++) {
            asked++;
            if (socket(families[family], types[type], 0) >= 0) escaped("a socket of family %d", families[family]);
            /* Another reason means that the family was asked. */
            if (errno != EAFNOSUPPORT) escaped("family %d: %s", families[family], strerror(errno));
        }
    refused("%d kinds: no such family", asked);
}

/* Sets what is there already. */
static void link_mtu(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    if (ioctl(control, SIOCGIFMTU, &request) < 0) absent("no lo");
    judge(ioctl(control, SIOCSIFMTU, &request), "set the MTU of lo");
}

static void add_address(void) {
    struct ifreq request = {.ifr_name = "lo:9"};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = inet_addr("127.9.9.9");
    judge(ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFADDR, &request), "give lo another address");
}

static void add_route(void) {
    struct rtentry route = {.rt_flags = RTF_UP | RTF_HOST, .rt_dev = "lo"};
    ((struct sockaddr_in *)&route.rt_dst)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_dst)->sin_addr.s_addr = inet_addr("203.0.113.99");
    judge(ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCADDRT, &route), "add a route");
}

static void add_link(void) {
    struct {
        struct nlmsghdr head;
        struct ifinfomsg link;
        char attributes[128];
    } request = {.head = {.nlmsg_type = RTM_NEWLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL}};
    struct rtattr *info = (struct rtattr *)request.attributes, *type = RTA_DATA(info);
    *type = (struct rtattr){.rta_type = IFLA_INFO_KIND, .rta_len = RTA_LENGTH(4)};
    memcpy(RTA_DATA(type), "veth", 4);
    *info = (struct rtattr){.rta_type = IFLA_LINKINFO, .rta_len = (unsigned short)RTA_LENGTH(type->rta_len)};
    request.head.nlmsg_len = NLMSG_LENGTH(sizeof request.link) + info->rta_len;
    int route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (route < 0 || send(route, &request, request.head.nlmsg_len, 0) < 0) refused("netlink: %s", strerror(errno));
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[512];
    } reply;
    if (recv(route, &reply, sizeof reply, 0) < 0) refused("netlink: %s", strerror(errno));
    errno = -reply.error.error;
    judge_door(reply.error.error ? -1 : 0, "add a pair of links");
}

static void packet_mark(void) {
    int mark = 1;
    judge(setsockopt(socket(AF_INET, SOCK_DGRAM, 0), SOL_SOCKET, SO_MARK, &mark, sizeof mark), "mark packets");
}
static void transparent(void) {
    int on = 1;
    judge(setsockopt(socket(AF_INET, SOCK_STREAM, 0), IPPROTO_IP, 19 /* IP_TRANSPARENT */, &on, sizeof on), "send from addresses that aren't its own");
}
static void iptables_replace(void) {
    char bytes[128] = "";
    if (setsockopt(socket(AF_INET, SOCK_DGRAM, 0), IPPROTO_IP, 64 /* IPT_SO_SET_REPLACE */, bytes, sizeof bytes) < 0 && errno == ENOPROTOOPT)
        absent("this kernel has no iptables");
    judge_door(-1, "replace iptables");
}

/* Refused unless somebody accepts. */
static void reach(const char *host, const char *port) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port};
    int is_v4 = inet_pton(AF_INET, host, &v4.sin_addr);
    if (!is_v4 && !inet_pton(AF_INET6, host, &v6.sin6_addr)) absent("%s is no address", host);
    const struct sockaddr *address = is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    int connection = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connection < 0) refused("socket: %s", strerror(errno));
    if (connect(connection, address, is_v4 ? sizeof v4 : sizeof v6) < 0 && errno != EINPROGRESS) refused("%s port %s: %s", host, port, strerror(errno));
    struct pollfd polled = {.fd = connection, .events = POLLOUT};
    if (poll(&polled, 1, 2000) <= 0) refused("%s port %s: no answer in 2 s", host, port);
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) refused("%s port %s: %s", host, port, strerror(error));
    escaped("%s port %s was reached", host, port);
}

static const char *port(void) {
    static char text[16];
    const char *given = parameter("port");
    snprintf(text, sizeof text, "%s", given ? given : "80");
    return text;
}
static void reach_parameter(const char *name) {
    static char host[64];
    snprintf(host, sizeof host, "%s", needed(name));
    reach(host, port());
}

static void loopback(void) { reach("127.0.0.1", needed("loopback")); }
static void loopback6(void) { reach("::1", needed("loopback")); }
static void api(void) { reach("127.0.0.1", needed("api")); }
static void api_host(void) {
    static char host[64];
    snprintf(host, sizeof host, "%s", needed("host"));
    reach(host, needed("api"));
}
static void host_service(void) { reach_parameter("host"); }
static void gateway_host(void) { reach_parameter("gateway"); }
static void peer(void) { reach_parameter("peer"); }
static void peer_fenced(void) { reach_parameter("peer6"); }
static void private_10(void) { reach("10.66.0.1", port()); }
static void private_172(void) { reach("172.16.66.1", port()); }
static void private_192(void) { reach("192.168.66.1", port()); }
static void private_carrier(void) { reach("100.64.66.1", port()); }
static void private_ula(void) { reach("fd66::1", port()); }
static void link_local(void) { reach("169.254.66.1", port()); }
static void mapped(void) { reach("::ffff:10.66.0.1", port()); }
static void nat64(void) { reach("64:ff9b::a42:1", port()); }
static void metadata(void) { reach("169.254.169.254", "80"); }
static void metadata_tasks(void) { reach("169.254.170.2", port()); }
static void metadata_carrier(void) { reach("100.100.100.200", port()); }
static void metadata_wire(void) { reach("168.63.129.16", port()); }
static void six_to_four(void) { reach("2002:a42:1::1", port()); }
static void metadata_legacy(void) { reach("192.0.0.192", port()); }
static void metadata_six(void) { reach("fd00:ec2::254", port()); }
static void public_control(void) { reach("203.0.113.1", port()); }

const struct attempt network_attempts[] = {
    {"packet-socket", SECCOMP | CAPABILITIES, "CVE-2020-14386", "a packet socket", packet, 0},
    {"raw-icmp", CAPABILITIES, "", "a raw ICMP socket", raw_icmp, 0},
    {"raw-ip", CAPABILITIES, "", "a raw IP socket, for packets with a false sender", raw_ip, 0},
    {"raw-ip6", CAPABILITIES, "CVE-2020-10749", "a raw IPv6 socket, for false router announcements", raw_ip6, 0},
    {"vsock", SECCOMP, "", "a socket to the hypervisor of the host", vsock, 0},
    {"af-alg", SECCOMP, "", "a socket to the kernel's ciphers", alg, 0},
    {"netlink-netfilter", SECCOMP, "CVE-2022-32250 CVE-2024-1086", "nftables: a netfilter socket", netfilter, 0},
    {"netlink-audit", SECCOMP, "", "an audit socket", audit, 0},
    {"netlink-generic", SECCOMP, "", "a generic netlink socket", generic, 0},
    {"netlink-diag", SECCOMP, "", "a socket that lists sockets", diag, 0},
    {"rare-families", SECCOMP, "", "sockets of 31 other families, whose modules the kernel would load", rare, 0},
    {"link-mtu", CAPABILITIES, "", "change a network device", link_mtu, 0},
    {"add-address", CAPABILITIES, "", "take another address", add_address, 0},
    {"add-route", CAPABILITIES, "", "add a route", add_route, 0},
    {"add-link", CAPABILITIES, "", "netlink: add a pair of links", add_link, 0},
    {"packet-mark", CAPABILITIES, "", "mark packets, which rules of the host may trust", packet_mark, 0},
    {"transparent", CAPABILITIES, "", "send from addresses that aren't its own", transparent, 0},
    {"iptables-replace", CAPABILITIES, "CVE-2021-22555", "replace tables of iptables", iptables_replace, 0},
    {"loopback", NAMESPACES, "", "a service on the host's loopback", loopback, 0},
    {"loopback6", NAMESPACES, "", "a service on the host's IPv6 loopback", loopback6, 0},
    {"api", NAMESPACES, "", "the API on the host's loopback", api, 0},
    {"api-host", NAMESPACES, "", "the API at the host's own address", api_host, 0},
    {"host-service", EGRESS, "", "a service of the host at its own address", host_service, 0},
    {"gateway", EGRESS, "", "a service of the host at the address next to the instance", gateway_host, 0},
    {"peer", EGRESS, "", "another instance at its address", peer, 0},
    {"peer6", EGRESS, "", "another instance at its IPv6 address", peer_fenced, 0},
    {"private-10", EGRESS, "", "10.0.0.0/8", private_10, 0},
    {"private-172", EGRESS, "", "172.16.0.0/12", private_172, 0},
    {"private-192", EGRESS, "", "192.168.0.0/16", private_192, 0},
    {"private-100", EGRESS, "", "100.64.0.0/10", private_carrier, 0},
    {"private-fd", EGRESS, "", "fc00::/7", private_ula, 0},
    {"private-mapped", EGRESS, "", "10.0.0.0/8 written as an IPv6 address", mapped, 0},
    {"private-nat64", EGRESS, "", "10.0.0.0/8 behind a translating gateway", nat64, 0},
    {"private-6to4", EGRESS, "", "10.0.0.0/8 inside an IPv6 address that looks public", six_to_four, 0},
    {"link-local", EGRESS, "", "169.254.0.0/16", link_local, 0},
    {"metadata", NAMESPACES, "", "the cloud's metadata at 169.254.169.254", metadata, 0},
    {"metadata-tasks", EGRESS, "", "credentials of tasks at 169.254.170.2", metadata_tasks, 0},
    {"metadata-100", EGRESS, "", "the cloud's metadata at 100.100.100.200", metadata_carrier, 0},
    {"metadata-168", EGRESS, "", "the cloud's wire server at 168.63.129.16, a public address", metadata_wire, 0},
    {"metadata-192", EGRESS, "", "the cloud's metadata at 192.0.0.192", metadata_legacy, 0},
    {"metadata-fd", EGRESS, "", "the cloud's metadata at fd00:ec2::254", metadata_six, 0},
    {"public", 0, "", "control: an ordinary public address must be reached", public_control, 0},
    {0},
};
