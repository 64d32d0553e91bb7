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
    one("domain", "localhost", "Services are reached as NAME.DOMAIN. Frozen at the first start."),
    one("project", "demo", "Default project. Frozen at the first start."),
    one("region", "asia-northeast1", "Default region. Frozen at the first start."),
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
