//! Every option of the server, once: its name, default, meaning and the version it came with. Flags, environment, file,
//! `config show` and the reference page are all made from this table.

/// One option. `name` is the key in the file (`listen-api`), the flag (`--listen-api`) and, upper-cased with the prefix, the
/// variable (`UTSUWA_LISTEN_API`).
#[derive(Debug)]
pub(crate) struct OptionDoc {
    pub name: &'static str,
    pub default: &'static str,
    pub doc: &'static str,
    /// Lists are arrays in the file, repeated flags, and comma-separated in the environment.
    pub list: bool,
    pub since: &'static str,
}

const fn one(name: &'static str, default: &'static str, doc: &'static str) -> OptionDoc {
    OptionDoc {
        name,
        default,
        doc,
        list: false,
        since: "0.1",
    }
}

const fn many(name: &'static str, default: &'static str, doc: &'static str) -> OptionDoc {
    OptionDoc {
        name,
        default,
        doc,
        list: true,
        since: "0.1",
    }
}

/// One option a line: the reference page is made from these lines.
#[rustfmt::skip]
pub(crate) const OPTIONS: &[OptionDoc] = &[
    one("data-dir", "/var/lib/utsuwa", "Where state, images, logs and keys are kept (of root, mode 0750; the server's group may enter); of an ordinary user: ~/.local/share/utsuwa."),
    one("listen-api", "localhost:8787", "Address of the API. Loopback only until identity exists."),
    one("listen-http", "localhost:8080", "Address services answer on, plain HTTP."),
    one("listen-https", "localhost:8443", "Address services answer on over HTTPS; empty: none. Certificates are made at once by a local authority (utsuwa trust)."),
    one("https-redirect", "false", "Whether plain HTTP requests from outside are sent to HTTPS (302, 307); the addresses shown are https:// then."),
    one("certificates-file", "", "TOML file with a table per host or pattern (*.example.com): certificate-file and key-file, both PEM. Read again when it or they change, and at SIGHUP; the server's user must be able to."),
    one("acme-directory", "", "Certificate authority that is asked for certificates of mapped domains: letsencrypt, or the address of a directory (RFC 8555). Naming one agrees to its terms. Empty: none."),
    many("acme-contact", "", "Mail addresses that the authority may write to."),
    one("acme-challenge", "auto", "How the authority checks a domain: http-01 (port 80), tls-alpn-01 (port 443), or auto: one after the other."),
    one("acme-ca-file", "", "PEM file of the only authority that acme-directory's own address is trusted by, for an authority inside a house."),
    one("public-address", "", "IP addresses, or a name, that clients outside reach this server by, separated by commas: for the DNS records of domains. Empty: found out."),
    one("domain", "localhost", "Services are reached as NAME.DOMAIN. Frozen at the first start, which then is the default."),
    one("project", "demo", "Default project. Frozen at the first start, which then is the default."),
    one("region", "asia-northeast1", "Default region. Frozen at the first start, which then is the default."),
    one("idle-timeout", "15m", "How long an instance without requests is kept, as 30s, 15m or 1h."),
    one("drain-timeout", "1h", "How long requests and streams under way may go on in a server whose place another has taken (up --replace); after a signal at most 10s."),
    many("allow-egress", "", "Opens closed destinations to instances: CIDR[:PORT], or host:PORT for a port of this machine."),
    many("allow-host-dir", "", "Directories of this machine that services may mount: PATH to read, PATH:rw to write, with all that is below."),
    many("insecure-registries", "", "Registries (host or host:port) that may be spoken to over plain HTTP."),
    many("image-rewrites", "", "FROM=TO rules for image references; FROM ending in / matches a prefix."),
    one("docker-config", "", "File with registry credentials in docker's format; default: config.json in .docker of the user who starts."),
    one("registries-file", "", "TOML file with a table per registry: username with password or password-file, and ca-file (errors/image-unauthorized.md)."),
    one("log-budget", "64Mi", "Bytes of logs kept per service, a quarter of them for requests and ends of instances; the oldest go first and leave a marker."),
    one("disk-reserve", "512Mi", "Free bytes that pulls and logs leave on the data directory's disk."),
    one("memory-reserve", "128Mi", "Memory of this machine that instances leave to everybody else: a wake that would touch it lets idle instances go, or waits."),
    one("header-timeout", "60s", "How long a client may take to send the head of a request, or keep an idle connection of HTTP/1.1."),
    one("body-timeout", "60s", "How long a client may pause in a body whose length it has said; beyond it 408. Streams may pause as long as their request may last."),
    one("max-header-bytes", "64Ki", "Bytes that the head of a request may have; beyond it, or with more than 100 headers, 431."),
    one("max-streams", "250", "Requests under way at once on one HTTP/2 connection."),
    one("max-control-frames", "500", "Frames a second that an HTTP/2 client may send without asking for anything (PING, SETTINGS, resets, …), four seconds' worth at once; beyond it the connection is closed."),
    one("max-waiting", "20000", "Requests that wait for an instance, of all revisions together; 10,000 of each at most. Beyond it 429; a revision that has as many as are left for all others gets no more."),
    many("scanner-paths", "/.env,/.env.*,*/.env,/.git/*,*/.git/config,/.svn/*,/.hg/*,/.aws/*,/.ssh/*,/.vscode/*,/.ds_store,/wp-login.php,/wp-admin/*,/wp-content/*,/wp-includes/*,*/wp-includes/wlwmanifest.xml,/wordpress/*,/xmlrpc.php,/phpmyadmin/*,/pma/*,/phpinfo.php,/info.php,/cgi-bin/*,/vendor/phpunit/*,/actuator/*,/boaform/*,/hnap1/*,/solr/*,/owa/*,/ecp/*,/server-status,/_profiler/*,/telescope/*", "Paths that scanners ask for: 404 without waking, at services deployed with --refuse-scanners. In any case of letters, with one * at most."),
    many("proxy-protocol-http", "", "Addresses or CIDR ranges of proxies that begin their connections to listen-http with the PROXY protocol (version 1 or 2). The address it names is the client's; a connection of theirs without it is closed. Others can't use it."),
    many("proxy-protocol-https", "", "The same for connections to listen-https; the header comes before the TLS handshake."),
    one("user", "utsuwa", "User the server runs as; a free uid is used when it does not exist."),
    one("log-format", "auto", "Format of the server's own log: text, json or auto (json unless on a terminal)."),
    one("log-level", "info", "What the server logs: error, warn, info, debug, or a filter such as utsuwa_ingress=debug."),
];

/// The flag of an option: a list's is given once for each item, and called after one.
pub(crate) fn flag(name: &str) -> String {
    match name {
        "insecure-registries" => "--insecure-registry".to_owned(),
        "image-rewrites" => "--image-rewrite".to_owned(),
        other => format!("--{other}"),
    }
}

/// The environment variable of an option.
pub(crate) fn variable(name: &str) -> String {
    format!("UTSUWA_{}", name.to_uppercase().replace('-', "_"))
}

/// The option called `name` in any spelling (`listen_api`, `listen-api`).
pub(crate) fn find(name: &str) -> Option<&'static OptionDoc> {
    let name = name.replace('_', "-");
    OPTIONS.iter().find(|o| o.name == name)
}
