//! Routes: the `google.api.http` rules of our services, read from the descriptors.

use http::Method;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor, ReflectMessage, Value};

use crate::path::{Template, TemplateError};
use crate::pool;

/// What becomes of a request's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// There is none; everything else is in the query.
    None,
    /// The whole request message; the query may add nothing.
    Whole,
    /// One field; the rest is in the query.
    Field(String),
}

/// One REST route to one gRPC method.
#[derive(Debug, Clone)]
pub struct Rule {
    pub verb: Method,
    pub template: Template,
    pub body: Body,
    pub input: MessageDescriptor,
    pub output: MessageDescriptor,
    /// `/package.Service/Method`.
    pub rpc: String,
}

/// Why routes can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("service {0} is not described in proto/")]
    UnknownService(String),
    #[error("method {0} is not described in proto/")]
    UnknownMethod(String),
    #[error("the http rule of {method} {why}")]
    Malformed { method: String, why: &'static str },
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// All routes of a service (full name), in the order of its methods.
///
/// # Errors
/// When the service is unknown or a rule can't be read; neither happens for what `proto/` holds.
pub fn of_service(service: &str) -> Result<Vec<Rule>, RuleError> {
    let descriptor = pool()
        .get_service_by_name(service)
        .ok_or_else(|| RuleError::UnknownService(service.to_owned()))?;
    let mut rules = Vec::new();
    for method in descriptor.methods() {
        if let Some(rule) = http_option(&method) {
            read(&method, &rule, &mut rules, true)?;
        }
    }
    Ok(rules)
}

/// A route that Google declares outside of its proto files: `service` and `method` by name.
///
/// # Errors
/// When the method is unknown or the template can't be read.
pub fn declared(
    service: &str,
    method: &str,
    verb: Method,
    template: &str,
    body: Body,
) -> Result<Rule, RuleError> {
    let descriptor = pool()
        .get_service_by_name(service)
        .and_then(|s| s.methods().find(|m| m.name() == method))
        .ok_or_else(|| RuleError::UnknownMethod(format!("{service}.{method}")))?;
    Ok(rule(&descriptor, verb, Template::parse(template)?, body))
}

fn rule(method: &MethodDescriptor, verb: Method, template: Template, body: Body) -> Rule {
    Rule {
        verb,
        template,
        body,
        input: method.input(),
        output: method.output(),
        rpc: format!("/{}/{}", method.parent_service().full_name(), method.name()),
    }
}

fn http_option(method: &MethodDescriptor) -> Option<DynamicMessage> {
    let extension = pool().get_extension_by_name("google.api.http")?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return None;
    }
    options.get_extension(&extension).as_message().cloned()
}

fn read(
    method: &MethodDescriptor,
    message: &DynamicMessage,
    rules: &mut Vec<Rule>,
    outer: bool,
) -> Result<(), RuleError> {
    let malformed = |why| RuleError::Malformed {
        method: method.full_name().to_owned(),
        why,
    };
    let oneof = message
        .descriptor()
        .oneofs()
        .find(|o| o.name() == "pattern")
        .ok_or_else(|| malformed("has no pattern"))?;
    let field = oneof
        .fields()
        .find(|f| message.has_field(f))
        .ok_or_else(|| malformed("names no verb"))?;
    let verb = match field.name() {
        "get" => Method::GET,
        "put" => Method::PUT,
        "post" => Method::POST,
        "delete" => Method::DELETE,
        "patch" => Method::PATCH,
        _ => return Err(malformed("has an unknown verb")),
    };
    let text = message.get_field(&field);
    let template = Template::parse(
        text.as_str()
            .ok_or_else(|| malformed("has a path that isn't text"))?,
    )?;
    let body = match message
        .get_field_by_name("body")
        .as_deref()
        .and_then(Value::as_str)
    {
        None | Some("") => Body::None,
        Some("*") => Body::Whole,
        Some(field) => Body::Field(field.to_owned()),
    };
    rules.push(rule(method, verb, template, body));
    if outer && let Some(more) = message.get_field_by_name("additional_bindings") {
        for more in more.as_list().unwrap_or_default() {
            let more = more
                .as_message()
                .ok_or_else(|| malformed("has a binding that isn't a rule"))?;
            read(method, more, rules, false)?;
        }
    }
    Ok(())
}
