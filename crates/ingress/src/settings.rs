//! What an operator may set of the data path. Parsed and checked by `daemon`; handed over by value.

use std::time::Duration;

use crate::proxied::Network;

/// Limits and times of the ingress. [`Default`] holds the documented defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressSettings {
    /// Client connections that have a request under way or had none yet, of all public listeners together. Beyond it new ones
    /// wait in the kernel's accept queue. Those that wait for their client's next request aren't counted: they may be as many
    /// as nothing else is of this, `max_requests`, `max_instance_connections`, `max_instance_requests` and `max_idle` together, and
    /// are closed when room is wanted.
    pub max_connections: usize,
    /// Connections of one instance to services. Beyond it new ones are answered 429 and closed.
    pub max_connections_per_instance: usize,
    /// The same of all instances together. Beyond it new ones are answered 503 and closed.
    pub max_instance_connections: usize,
    /// Requests under way in instances, of clients from outside, all public listeners together. Each may hold a socket, and one
    /// connection may carry `max_streams` of them. Beyond it new ones are answered 503; who has as many as are left, 429.
    pub max_requests: usize,
    /// The same of instances that call services.
    pub max_instance_requests: usize,
    /// Requests that wait for an instance, of all revisions together; each may have 10,000. Beyond it new ones are answered
    /// 429, first of the revision that has as many as are left for all others.
    pub max_waiting: usize,
    /// Paths that scanners ask for, each with one `*` at most, for services that refuse those.
    pub scanner_paths: Vec<String>,
    /// Who begins connections to plain HTTP listeners with the PROXY protocol.
    pub proxies_http: Vec<Network>,
    /// The same for HTTPS listeners.
    pub proxies_https: Vec<Network>,
    /// How long a client may take to send the head of a request; also how long a kept-alive connection may idle at most.
    pub header_timeout: Duration,
    /// How long a client may take for a TLS handshake, from its first byte on.
    pub handshake_timeout: Duration,
    /// How long a client may pause while it sends a body whose length it has said; beyond it 408. Streams (chunked, or HTTP/2
    /// without a length) may pause as long as their request may last.
    pub body_timeout: Duration,
    /// The head of a request, in bytes; beyond it 431.
    pub max_header_bytes: usize,
    /// Frames a second that an HTTP/2 connection may send without asking for anything; it may save up four seconds' worth, and
    /// gets more for answers that it takes. Beyond it the connection is closed.
    pub max_control_frames: u32,
    /// Streams one HTTP/2 connection may have open.
    pub max_streams: u32,
    /// Bytes of a request or of a response of known length for HTTP/1.1 revisions (§2.3).
    pub max_message_bytes: u64,
    /// Idle connections kept per instance.
    pub max_idle_per_instance: usize,
    /// Idle connections kept of all instances together.
    pub max_idle: usize,
    /// At shutdown: how long requests in flight may go on.
    pub drain: Duration,
    /// Shortest and longest pause between two attempts to reach a starting instance.
    pub probe_pause: (Duration, Duration),
}

impl Default for IngressSettings {
    fn default() -> Self {
        Self {
            max_connections: 16_384,
            // Twelve times the default concurrency: room for an app that calls several others for each request.
            max_connections_per_instance: 1_000,
            max_instance_connections: 8_192,
            max_requests: 16_384,
            max_instance_requests: 8_192,
            // With a body of 16 KiB each, read ahead, they hold 320 MiB at the very most.
            max_waiting: 20_000,
            scanner_paths: Vec::new(),
            proxies_http: Vec::new(),
            proxies_https: Vec::new(),
            header_timeout: Duration::from_secs(60),
            // Three times what a phone with a bad connection needs.
            handshake_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(60),
            max_header_bytes: 64 << 10,
            // A browser sends some ten a page; a client that cancels every call it makes, one for each.
            max_control_frames: 500,
            max_streams: 250,
            max_message_bytes: 32 << 20,
            max_idle_per_instance: 256,
            max_idle: 4_096,
            drain: Duration::from_secs(10),
            // Measured: an attempt costs some 20 µs; 150 µs keeps the expected loss per cold start under 100 µs.
            probe_pause: (Duration::from_micros(150), Duration::from_millis(20)),
        }
    }
}
