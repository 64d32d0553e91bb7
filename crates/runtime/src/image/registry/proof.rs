//! Proving who asks: credentials, tokens, and how long they are good for.

use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::{Registry, refusal};
use crate::image::credentials::Credential;
use crate::image::error::PullError;
use crate::image::reference::Reference;

impl Registry {
    pub(super) fn proof(&self, image: &Reference) -> Option<HeaderValue> {
        let proofs = self.proofs.lock();
        proofs
            .get(&image.name())
            .filter(|(_proof, until)| *until > Instant::now())
            .map(|(proof, _until)| proof.clone())
    }

    /// Answers the challenge of a 401 with the best proof there is; without credentials, an anonymous token.
    pub(super) async fn prove(
        &self,
        image: &Reference,
        response: Response,
        doing: &str,
    ) -> Result<(), PullError> {
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let detail = refusal(response).await;
        // Any that can't be had are no reason not to ask: the image may be public, and the refusal says why there were none.
        let credential = self.settings.credentials.find(image).unwrap_or_default();
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let (proof, lifetime) = match (bearer.or_else(|| challenges.first()), credential) {
            (_, Some(Credential::AccessToken { access_token })) => {
                (format!("Bearer {access_token}"), Duration::from_secs(60))
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credential,
            ) => {
                let scope = scope
                    .clone()
                    .unwrap_or_else(|| format!("repository:{}:pull", image.repository));
                self.token(
                    image,
                    realm,
                    service.as_deref(),
                    &scope,
                    credential.as_ref(),
                    doing,
                )
                .await?
            }
            (Some(Challenge::Basic), Some(Credential::Password { username, password })) => (
                format!(
                    "Basic {}",
                    encode_base64(format!("{username}:{password}").as_bytes())
                ),
                Duration::from_secs(3600),
            ),
            (Some(Challenge::Basic), Some(Credential::IdentityToken { .. })) => {
                return Err(self.unauthorized(
                    image,
                    ": it wants a user name and password, not a token".to_owned(),
                ));
            }
            _ => return Err(self.unauthorized(image, detail)),
        };
        let mut proof = HeaderValue::from_str(&proof).map_err(|_error| {
            self.unauthorized(
                image,
                ": the credentials contain characters that can't be sent".to_owned(),
            )
        })?;
        proof.set_sensitive(true);
        self.proofs
            .lock()
            .insert(image.name(), (proof, Instant::now() + lifetime));
        Ok(())
    }

    async fn token(
        &self,
        image: &Reference,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credential: Option<&Credential>,
        doing: &str,
    ) -> Result<(String, Duration), PullError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let doing = format!("{doing} (get a token)");
        let base = Url::parse(&self.base(&image.registry))
            .map_err(|error| self.broken(image, &doing, error.to_string()))?;
        let mut url = base.join(realm).map_err(|error| {
            self.broken(
                image,
                &doing,
                format!("its token service '{realm}': {error}"),
            )
        })?;
        self.allow(image, &base, &url)?;
        let client = self.transport.client(&url)?;
        let request = match credential {
            Some(Credential::IdentityToken { identity_token }) => {
                let mut form = Url::parse("form:")
                    .map_err(|error| self.broken(image, &doing, error.to_string()))?;
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("scope", scope)
                    .append_pair("client_id", "utsuwa")
                    .append_pair("refresh_token", identity_token);
                client
                    .post(url)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            other => {
                url.query_pairs_mut().append_pair("scope", scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                let request = client.get(url);
                match other {
                    Some(Credential::Password { username, password }) => {
                        request.basic_auth(username, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let response = self.send(image, &doing, request).await?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let detail = refusal(response).await;
            return Err(self.unauthorized(image, detail));
        }
        if !status.is_success() {
            let detail = refusal(response).await;
            return Err(self.broken(
                image,
                &doing,
                format!("its token service answers {status}{detail}"),
            ));
        }
        let content = self.read_document(image, response, &doing).await?;
        let answer: Answer = serde_json::from_slice(&content).map_err(|error| {
            self.broken(
                image,
                &doing,
                format!("the answer of its token service: {error}"),
            )
        })?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| {
            self.broken(
                image,
                &doing,
                "its token service answers without a token".to_owned(),
            )
        })?;
        // A little less than it says: clocks differ. The specification's default is 60 s.
        let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(60).clamp(10, 3600) - 5);
        Ok((format!("Bearer {token}"), lifetime))
    }
}

fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte))
            << (8 * (3 - group.len()));
        for position in 0..4 {
            let digit = DIGITS[((bits >> (18 - 6 * position)) & 63) as usize];
            text.push(if position <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_usual_one() {
        for (plain, coded) in [
            ("", ""),
            ("a", "YQ=="),
            ("ab", "YWI="),
            ("abc", "YWJj"),
            ("user:pa:ss", "dXNlcjpwYTpzcw=="),
        ] {
            assert_eq!(encode_base64(plain.as_bytes()), coded);
        }
    }
}
