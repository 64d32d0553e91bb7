//! The page at `/`.

use crate::http::Request;
use crate::system;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1d2733;--dim:#667384;--paper:#f4f1ea;--card:#fffdf8;--line:#e2dccf;--glaze:#2f6f73}
@media(prefers-color-scheme:dark){:root{--ink:#ece7dc;--dim:#9aa5b1;--paper:#14181c;--card:#1d2329;--line:#303942;--glaze:#7fc2bd}}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:2rem 1rem;background:var(--paper);color:var(--ink);
font:16px/1.6 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{width:min(38rem,100%);background:var(--card);border:1px solid var(--line);border-radius:18px;padding:2.5rem;
box-shadow:0 20px 50px -30px rgba(0,0,0,.45)}
svg{display:block;width:72px;height:72px;color:var(--glaze)}
h1{font-size:1.9rem;line-height:1.2;margin:1.2rem 0 .4rem;letter-spacing:-.02em}
p{margin:0 0 1.6rem;color:var(--dim)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.7rem 1.4rem;margin:0 0 1.8rem;padding:1.3rem 0;
border-block:1px solid var(--line)}
dt{color:var(--dim)}
dd{margin:0;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.92rem;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.5rem}
a{color:var(--glaze);text-decoration:none;border:1px solid var(--line);border-radius:99px;padding:.25rem .8rem;font-size:.88rem}
a:hover,a:focus-visible{border-color:var(--glaze)}
.note{margin:1.6rem 0 0;font-size:.85rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}";

/// A bowl with steam.
const BOWL: &str = "<svg viewBox=\"0 0 72 72\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"3.5\" stroke-linecap=\"round\" \
aria-hidden=\"true\"><path d=\"M8 34h56c0 16-11 26-28 26S8 50 8 34z\"/><path d=\"M27 66h18\"/>\
<path d=\"M26 24c-4-5 4-8 0-14M37 24c-4-5 4-8 0-14M48 24c-4-5 4-8 0-14\"/></svg>";

/// The page for this request.
pub fn render(request: &Request) -> String {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_unset| "(not set)".to_owned());
    let service = std::env::var("K_SERVICE").unwrap_or_else(|_unset| "hello".to_owned());
    let rows = [
        ("Service", variable("K_SERVICE")),
        ("Revision", variable("K_REVISION")),
        ("Instance", system::host_name()),
        (
            "Host",
            request.header("host").unwrap_or("(none)").to_owned(),
        ),
        ("Caller", request.peer.clone()),
    ];
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<dt>{name}</dt><dd>{}</dd>\n", escape(value)))
        .collect();
    let links: String = [
        "/env",
        "/headers",
        "/sleep?ms=500",
        "/stream?n=5&ms=300",
        "/log?severity=NOTICE&message=hi",
    ]
    .iter()
    .map(|link| format!("<a href=\"{0}\">{0}</a>\n", escape(link)))
    .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<main>\n{BOWL}\n<h1>It’s running.</h1>\n\
         <p>This container was asleep until somebody asked for it. It answers now, and sleeps again when nobody does.</p>\n\
         <dl>\n{rows}</dl>\n<nav>\n{links}</nav>\n\
         <p class=\"note\">To see what becomes of an app that starts badly, deploy with <code>HELLO_START=exit:3</code>, \
         <code>never-listen</code> or <code>sleep:5000</code>, or with <code>HELLO_LISTEN=127.0.0.1:8080</code>.</p>\n</main>\n</body>\n</html>\n",
        title = escape(&service),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
