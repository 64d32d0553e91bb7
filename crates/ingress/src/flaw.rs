//! What is wrong with a message that we refuse to read: one word, one status and one sentence each.
//!
//! A message that two programs on its way may read differently is refused, however small the doubt: nobody who means well
//! sends one. RFC 9112 lets a server be lenient in most of these; `tests/smuggling` holds what nginx and haproxy make of them.

use http::StatusCode;

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    BareLineFeed,
    EmptyLines,
    RequestLine,
    Version,
    Folded,
    FieldLine,
    Control,
    LengthTwice,
    LengthNotNumber,
    BothLengths,
    BodyLonger,
    Coding,
    OldCoding,
    HeadTooLarge,
    TooManyFields,
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    Trailer,
    TrailerTooLarge,
    HostMissing,
    HostTwice,
    HostName,
    HostDiffers,
    UserInfo,
    Scheme,
    Target,
    Disguised,
    /// Only said when nothing better is known.
    Other,
}

impl Flaw {
    /// What its sender is answered.
    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailerTooLarge => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The word after `reason=`.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::HeadTooLarge | Self::TooManyFields | Self::TrailerTooLarge => "head_too_large",
            Self::HostMissing | Self::HostTwice | Self::HostName | Self::HostDiffers => "bad_host",
            _ => "malformed_request",
        }
    }

    /// The sentence for the log and for the answer: it repeats nothing of what was sent.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::BareLineFeed => {
                "A line of the request ends in a line feed without a carriage return."
            }
            Self::EmptyLines => "More than one empty line comes before the request.",
            Self::RequestLine => {
                "The request line is not a method, a target and a version with one space between them."
            }
            Self::Version => "The request speaks a version of HTTP that is neither 1.0 nor 1.1.",
            Self::Folded => "A header of the request is folded over several lines.",
            Self::FieldLine => "A header line of the request is not a name, a colon and a value.",
            Self::Control => "A header of the request has a control character in it.",
            Self::LengthTwice => "The request says more than once how long its body is.",
            Self::LengthNotNumber => "The Content-Length of the request is not a number.",
            Self::BothLengths => "The request has a Content-Length and a Transfer-Encoding.",
            Self::BodyLonger => "The body of the request is longer than its Content-Length.",
            Self::Coding => "The Transfer-Encoding of the request is another than chunked.",
            Self::OldCoding => "The request has a Transfer-Encoding, which HTTP/1.0 doesn't know.",
            Self::HeadTooLarge => "The head of the request is larger than this server takes.",
            Self::TooManyFields => "The request has more headers than this server takes.",
            Self::ChunkSize => {
                "The size of a chunk of the request body is not a hexadecimal number."
            }
            Self::ChunkExtension => {
                "A chunk extension of the request body is malformed or too long."
            }
            Self::ChunkEnd => "A chunk of the request body does not end where its size says.",
            Self::Trailer => "The trailers of the request are malformed.",
            Self::TrailerTooLarge => {
                "The trailers of the request are larger than this server takes."
            }
            Self::HostMissing => "The request names no host.",
            Self::HostTwice => "The request names more than one host.",
            Self::HostName => {
                "The host that the request names is no host name with an optional port."
            }
            Self::HostDiffers => {
                "The request's Host header is another than the host of its target."
            }
            Self::UserInfo => "The request names a user in front of its host.",
            Self::Scheme => "The target of the request is no http or https address.",
            Self::Target => "The target of the request is neither a path nor an address.",
            Self::Disguised => {
                "A header of the request is spelt with an underscore, which apps take for one that only this server may set."
            }
            Self::Other => "The request can't be read.",
        }
    }
}
