//! System parameters: query parameters that belong to no method.

use crate::ApiError;

/// How the answer is to be written, and what of the query is left for the method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    pub(super) pretty: bool,
    pub(super) enum_numbers: bool,
    /// Partial response (`fields=services(name,uri)`), as written.
    pub(super) fields: Option<String>,
    /// The other parameters, decoded, in order.
    pub(super) rest: Vec<(String, String)>,
}

impl System {
    pub(super) fn read(query: &str) -> Result<Self, ApiError> {
        let mut system = Self {
            pretty: true,
            enum_numbers: false,
            fields: None,
            rest: Vec::new(),
        };
        for (name, value) in pairs(query)? {
            match name.as_str() {
                "alt" | "$alt" => system.alt(&value)?,
                "prettyPrint" | "$prettyPrint" => system.pretty = value != "false" && value != "0",
                "fields" | "$fields" => system.fields = Some(value),
                // Known to Google's front end, of no meaning here.
                "key" | "$key" | "access_token" | "oauth_token" | "callback" | "$callback"
                | "quotaUser" | "$quotaUser" | "userIp" | "uploadType" | "upload_protocol"
                | "$.xgafv" | "$userProject" | "userProject" | "$unique" | "$ct" | "$req"
                | "$apiVersion" => {}
                _ => system.rest.push((name, value)),
            }
        }
        Ok(system)
    }

    fn alt(&mut self, value: &str) -> Result<(), ApiError> {
        let mut parts = value.split(';');
        if parts.next() != Some("json") {
            return Err(ApiError::invalid(
                "alt",
                format!("{value:?} is not served: only json is"),
            ));
        }
        for part in parts {
            match part {
                "enum-encoding=int" => self.enum_numbers = true,
                "enum-encoding=string" => self.enum_numbers = false,
                other => {
                    return Err(ApiError::invalid(
                        "alt",
                        format!(
                            "{other:?} is unknown: only enum-encoding=int or =string may follow"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The query's parameters, percent- and plus-decoded.
fn pairs(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let decode = |text: &str| {
        utsuwa_wire::path::percent_decode(&text.replace('+', " ")).ok_or_else(|| {
            ApiError::invalid("query", format!("{text:?} is not percent-encoded UTF-8"))
        })
    };
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}
