//! `utsuwa domains …`: custom domains that lead to services.

use clap::Subcommand;
use serde_json::{Value, json};

use super::services::confirm;
use super::{ClientArgs, suggest};
use crate::client::{Api, Failure};
use crate::output::{Format, items, line, note, text_at, value};

#[derive(Debug, Subcommand)]
pub(crate) enum DomainsCommand {
    /// Let a domain lead to a service.
    Map {
        /// The whole name, such as www.example.com.
        domain: String,
        /// The service that its requests go to.
        #[arg(long)]
        service: String,
        /// Ask no authority for a certificate of it.
        #[arg(long)]
        no_certificate: bool,
        /// Take it from the mapping that has it.
        #[arg(long)]
        force_override: bool,
    },
    /// List mapped domains.
    List,
    /// Describe one, with the DNS records that it needs.
    Describe { domain: String },
    /// Let it lead nowhere; its certificate goes with it.
    Unmap {
        domain: String,
        /// Never ask.
        #[arg(long, short)]
        quiet: bool,
    },
}

pub(crate) async fn run(command: &DomainsCommand, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    let all = format!("/run/v1/{}/domainmappings", api.parent());
    match command {
        DomainsCommand::Map {
            domain,
            service,
            no_certificate,
            force_override,
        } => {
            if let Some(warning) = unknown_service(&api, service).await {
                note(&warning);
            }
            let wish = json!({
                "apiVersion": "domains.cloudrun.com/v1",
                "kind": "DomainMapping",
                "metadata": {"name": domain},
                "spec": {
                    "routeName": service,
                    "certificateMode": if *no_certificate { "NONE" } else { "AUTOMATIC" },
                    "forceOverride": force_override,
                },
            });
            if let Err(failure) = api.post(&all, &wish).await {
                return Err(match failure.is_already_there() && !force_override {
                    true => {
                        let mapping = api.get(&format!("{all}/{domain}")).await.ok();
                        failure.hint(how_to_take(mapping.as_ref(), &wish))
                    }
                    false => failure,
                });
            }
            note(&format!(
                "Domain [{domain}] is mapped to service [{service}]."
            ));
            show(client, &settled(&api, domain).await?)
        }
        DomainsCommand::List => {
            let answer = api.get(&all).await?;
            let mappings = answer["items"].as_array().cloned().unwrap_or_default();
            items(
                &client.format,
                &mappings,
                &[
                    ("DOMAIN", &|i| text_at(i, "metadata.name")),
                    ("SERVICE", &|i| text_at(i, "spec.routeName")),
                    ("READY", &|i| state(i, "Ready")),
                    ("CERTIFICATE", &|i| state(i, "CertificateProvisioned")),
                    ("URL", &|i| text_at(i, "status.url")),
                ],
            )
        }
        DomainsCommand::Describe { domain } => show(client, &find(&api, domain).await?),
        DomainsCommand::Unmap { domain, quiet } => {
            let mapping = find(&api, domain).await?;
            if !quiet {
                confirm(&unmapping(domain, &mapping))?;
            }
            api.delete(&format!("{all}/{domain}")).await?;
            note(&format!("Domain [{domain}] leads nowhere any more."));
            Ok(())
        }
    }
}

/// One mapping; if there is none, with the one that was probably meant.
async fn find(api: &Api, domain: &str) -> Result<Value, Failure> {
    let all = format!("/run/v1/{}/domainmappings", api.parent());
    match api.get(&format!("{all}/{domain}")).await {
        Err(failure) if failure.is_not_found() => {
            let Ok(answer) = api.get(&all).await else {
                return Err(failure);
            };
            let mapped = answer["items"].as_array().cloned().unwrap_or_default();
            let names: Vec<String> = mapped.iter().map(|m| text_at(m, "metadata.name")).collect();
            Err(failure.hint(suggest::hint(domain, &names, "domains", api)))
        }
        found => found,
    }
}

/// What comes of the end of a mapping.
fn unmapping(domain: &str, mapping: &Value) -> String {
    format!(
        "Domain [{domain}] will no longer lead to service [{}], and its certificate goes with it.",
        text_at(mapping, "spec.routeName")
    )
}

/// What to do about a domain that another mapping has; `mapping`: which, unless that is in another region. An error even where all is
/// as wished, as gcloud's is.
fn how_to_take(mapping: Option<&Value>, wish: &Value) -> String {
    let Some(mapping) = mapping else {
        return "a mapping of another region has it; --force-override takes it".to_owned();
    };
    let text = |of: &Value, key: &str| text_at(&of["spec"], key);
    let service = text(mapping, "routeName");
    if service != text(wish, "routeName") {
        return format!(
            "it leads to service [{service}]; --force-override lets it lead to [{}] instead",
            text(wish, "routeName")
        );
    }
    match text(mapping, "certificateMode") == text(wish, "certificateMode") {
        true => format!("it leads to service [{service}] already: nothing is to be done"),
        false => format!(
            "it leads to service [{service}] already, but differs in whether a certificate is asked for; --force-override maps it anew"
        ),
    }
}

/// What to say before a domain is mapped to a service that isn't there. It is mapped all the same, as gcloud does: the service may be
/// deployed afterwards.
async fn unknown_service(api: &Api, service: &str) -> Option<String> {
    let names = suggest::services(api).await.ok()?;
    if names.iter().any(|name| name == service) {
        return None;
    }
    let hint = suggest::hint(service, &names, "services", api);
    Some(format!(
        "warning: there is no service [{service}]: the domain leads nowhere until one of this name is deployed; {hint}"
    ))
}

/// What to say of records that lead back to the machine they are asked on.
fn only_here(mapping: &Value) -> Option<&'static str> {
    let records = mapping["status"]["resourceRecords"].as_array()?;
    let address = |record: &Value| text_at(record, "rrdata").parse::<std::net::IpAddr>();
    let here = |record: &Value| address(record).is_ok_and(|ip| ip.is_loopback());
    (!records.is_empty() && records.iter().all(here)).then_some(
        "The server listens on loopback only, so these records serve this machine alone. For everybody else start it with \
         --listen-http 0.0.0.0:80 --listen-https 0.0.0.0:443, and with --public-address ADDRESS where its address outside is another one.",
    )
}

/// The mapping once its loop has looked at it, and that of its service, which takes milliseconds. On a machine that is busy with a
/// deploy it may be a few seconds; longer than that nobody waits.
async fn settled(api: &Api, domain: &str) -> Result<Value, Failure> {
    let path = format!("/run/v1/{}/domainmappings/{domain}", api.parent());
    let mut mapping = api.get(&path).await?;
    for _ in 0..500 {
        if mapping["status"]["observedGeneration"] == mapping["metadata"]["generation"] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        mapping = api.get(&path).await?;
    }
    Ok(mapping)
}

fn condition<'a>(mapping: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = mapping["status"]["conditions"].as_array()?;
    all.iter().find(|c| c["type"] == kind)
}

fn state(mapping: &Value, kind: &str) -> String {
    let word = match condition(mapping, kind).map(|c| c["status"].as_str()) {
        Some(Some("True")) => "yes",
        Some(Some("False")) => "no",
        _ => "working",
    };
    word.to_owned()
}

fn show(client: &ClientArgs, mapping: &Value) -> Result<(), Failure> {
    if client.format != Format::Table {
        return value(&client.format, mapping);
    }
    let labelled = |label: &str, text: &str| line(&format!("{label:13}{text}"));
    labelled("Domain:", &text_at(mapping, "metadata.name"));
    labelled("Service:", &text_at(mapping, "spec.routeName"));
    labelled("URL:", &text_at(mapping, "status.url"));
    for (label, kind) in [
        ("Ready:", "Ready"),
        ("Routed:", "DomainRoutable"),
        ("Certificate:", "CertificateProvisioned"),
    ] {
        labelled(label, &state(mapping, kind));
        let message = condition(mapping, kind).and_then(|c| c["message"].as_str());
        // What the summary says is said below it once more.
        if let Some(message) = message.filter(|m| kind != "Ready" && !m.is_empty()) {
            labelled("", message);
        }
    }
    let records = mapping["status"]["resourceRecords"].as_array();
    for (at, record) in records.into_iter().flatten().enumerate() {
        let label = if at == 0 { "DNS records:" } else { "" };
        let part = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        labelled(
            label,
            &format!("{} {} {}", part("name"), part("type"), part("rrdata")),
        );
    }
    if let Some(text) = only_here(mapping) {
        note(&format!("note: {text}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_that_is_taken_is_told_with_what_has_it() {
        let spec = |service: &str, certificate: &str| json!({"spec": {"routeName": service, "certificateMode": certificate}});
        let mapping = spec("shop", "AUTOMATIC");
        let known = how_to_take(Some(&mapping), &spec("blog", "AUTOMATIC"));
        for part in ["[shop]", "[blog]", "--force-override"] {
            assert!(known.contains(part), "{known}");
        }
        let same = how_to_take(Some(&mapping), &mapping);
        assert!(
            same.contains("[shop] already: nothing is to be done"),
            "{same}"
        );
        let other = how_to_take(Some(&mapping), &spec("shop", "NONE"));
        assert!(
            other.contains("certificate") && other.contains("--force-override"),
            "{other}"
        );
        assert!(how_to_take(None, &mapping).contains("another region"));
    }

    #[test]
    fn records_of_a_server_that_only_this_machine_reaches_say_so() {
        let mapping = |data: &[&str]| {
            let records: Vec<Value> = data.iter().map(|d| json!({"rrdata": d})).collect();
            json!({"status": {"resourceRecords": records}})
        };
        let said = only_here(&mapping(&["127.0.0.1", "::1"])).unwrap();
        for option in ["--listen-http 0.0.0.0:80", "--public-address"] {
            assert!(said.contains(option), "{said}");
        }
        assert_eq!(only_here(&mapping(&["192.0.2.1", "::1"])), None);
        assert_eq!(only_here(&mapping(&["host.example."])), None);
        assert_eq!(only_here(&mapping(&[])), None);
    }
}
