//! From an instance's answer to the response that the client gets, with the phases of a cold start.

use http::header::SET_COOKIE;
use http::{HeaderValue, Response, StatusCode, Version};

use crate::body::{AppBody, ResponseBody};
use crate::deadline::{self, Deadline};
use crate::forward::Answered;
use crate::headers::{self, SERVER_TIMING};
use crate::record::Exchange;
use crate::seam::ColdStart;
use crate::slot::Slot;
use crate::source::Source;
use crate::trace::Trace;

/// A request with a slot's answer, before the answer's body.
pub(crate) struct Served {
    pub(crate) answered: Answered,
    pub(crate) slot: Slot,
    pub(crate) deadline: Deadline,
    pub(crate) timing: bool,
    pub(crate) cold: Option<ColdStart>,
    /// Makes the client come back to the same instance.
    pub(crate) cookie: Option<HeaderValue>,
}

impl Served {
    /// The response for the client; its body keeps slot and record until it has ended.
    pub(crate) fn into_response(
        self,
        mut exchange: Exchange,
        trace: &Trace,
    ) -> Response<ResponseBody> {
        let Self {
            answered,
            slot,
            deadline: until,
            timing,
            cold,
            cookie,
        } = self;
        let (mut parts, source, tunnel) = match answered {
            Answered::Plain(response) => {
                let (parts, source) = response.into_parts();
                (parts, source, None)
            }
            Answered::Upgraded { response, tunnel } => {
                let (parts, ()) = response.into_parts();
                (parts, Source::Over, Some(tunnel))
            }
        };
        if let Some(cookie) = cookie {
            parts.headers.append(SET_COOKIE, cookie);
        }
        headers::for_client(&mut parts.headers, trace, tunnel.is_some());
        let first_byte = exchange.elapsed();
        exchange.note(|record| {
            record.first_byte = first_byte;
            record.status = parts.status.as_u16();
            record.cold = cold;
        });
        if timing {
            let plain = ColdStart {
                answer: exchange.elapsed(),
                total: exchange.elapsed(),
                ..ColdStart::default()
            };
            if let Some(value) = server_timing(cold.as_ref().unwrap_or(&plain)) {
                parts.headers.append(SERVER_TIMING, value);
            }
        }
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        if let Some(tunnel) = tunnel {
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            tunnel.start(slot, exchange, until);
            return Response::from_parts(parts, ResponseBody::Own(None));
        }
        deadline::leave(Some(until.at()));
        let body = AppBody {
            source,
            deadline: until,
            dead: None,
            exchange,
            slot: Some(slot),
            complete: false,
        };
        Response::from_parts(parts, ResponseBody::App(Box::new(body)))
    }
}

/// The phases of the start this request waited for; `None` if its instance was there before it, or ran before this server did: then
/// it waited to be reached again only.
pub(crate) fn cold_start(slot: &Slot, exchange: &Exchange) -> Option<ColdStart> {
    let instance = slot.instance();
    let reached = *instance.reached.get()?;
    if reached < exchange.arrived || !instance.age.is_zero() {
        return None;
    }
    let start = instance.phases;
    Some(ColdStart {
        decide: instance
            .admitted
            .saturating_duration_since(exchange.arrived)
            .saturating_sub(start.sandbox + start.rootfs + start.exec),
        start,
        listen: reached.saturating_duration_since(instance.admitted),
        answer: reached.elapsed(),
        total: exchange.elapsed(),
    })
}

fn server_timing(cold: &ColdStart) -> Option<HeaderValue> {
    let phases = [
        ("decide", cold.decide),
        ("sandbox", cold.start.sandbox),
        ("rootfs", cold.start.rootfs),
        ("exec", cold.start.exec),
        ("listen", cold.listen),
        ("answer", cold.answer),
        ("total", cold.total),
    ];
    let text: Vec<String> = phases
        .iter()
        .map(|(name, took)| format!("{name};dur={:.3}", took.as_secs_f64() * 1000.0))
        .collect();
    HeaderValue::try_from(text.join(", ")).ok()
}
