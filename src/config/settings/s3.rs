//! Settles how requests to S3 sources are signed.

use super::Check;
use crate::config::{ContainerRole, S3Credentials, S3Keys, Secret, WebIdentity, ip_of, source::web_address};

/// Where the agents of containers listen: ECS's, and EKS's.
const AGENTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
/// Where machines find what they may know of themselves.
const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

impl Check<'_> {
    /// What was given first in this order: keys, a service account's token, a container's agent. The machine's own role is asked
    /// for only where that is wanted: elsewhere its service is not there, and everybody would wait for it.
    pub(super) fn s3_credentials(&mut self) -> S3Credentials {
        let said = &self.settings.said;
        match said.s3_credentials.as_deref() {
            Some("none") => return S3Credentials::Unsigned,
            Some("instance") => {
                let endpoint = said.s3_metadata_endpoint.as_deref();
                return S3Credentials::Instance {
                    endpoint: self.own_host("s3_metadata_endpoint", endpoint, &METADATA),
                };
            }
            Some("auto") | None => {}
            // A file may say what no flag could.
            Some(other) => {
                self.fault("s3_credentials", format!("it has to be auto, instance or none; it is '{other}'"));
            }
        }
        if said.s3_access_key_id.is_some() || said.s3_secret_access_key.is_some() {
            return self.s3_keys().map_or_else(S3Credentials::default, S3Credentials::Keys);
        }
        if said.s3_web_identity_token_file.is_some() {
            return self.web_identity().map_or_else(S3Credentials::default, S3Credentials::WebIdentity);
        }
        self.container_role().map_or_else(S3Credentials::default, S3Credentials::Container)
    }

    fn s3_keys(&mut self) -> Option<S3Keys> {
        let said = &self.settings.said;
        match (&said.s3_access_key_id, &said.s3_secret_access_key) {
            (Some(id), Some(secret)) => Some(S3Keys {
                access_key_id: id.clone(),
                secret_access_key: Secret(secret.clone()),
                session_token: said.s3_session_token.clone().map(Secret),
            }),
            (None, None) => None,
            (Some(_), None) => {
                self.fault("s3_access_key_id", "--s3-secret-access-key belongs to it");
                None
            }
            (None, Some(_)) => {
                self.fault("s3_secret_access_key", "--s3-access-key-id belongs to it");
                None
            }
        }
    }

    fn web_identity(&mut self) -> Option<WebIdentity> {
        let said = &self.settings.said;
        let token_file = said.s3_web_identity_token_file.clone()?;
        let Some(role_arn) = said.s3_role_arn.clone() else {
            self.fault("s3_web_identity_token_file", "--s3-role-arn (AWS_ROLE_ARN) belongs to it");
            return None;
        };
        // It is sent the token: never without encryption but on this machine.
        let endpoint = said.s3_sts_endpoint.as_deref().and_then(|url| match web_address(url, false) {
            Ok(url) => Some(url),
            Err(reason) => {
                self.fault("s3_sts_endpoint", reason);
                None
            }
        });
        Some(WebIdentity { token_file, role_arn, session_name: said.s3_role_session_name.clone(), endpoint })
    }

    fn container_role(&mut self) -> Option<ContainerRole> {
        const URI: &str = "s3_container_credentials_uri";
        let said = &self.settings.said;
        let uri = said.s3_container_credentials_uri.as_deref()?;
        if uri.starts_with('/') {
            if format!("http://{}{uri}", AGENTS[0]).parse::<http::Uri>().is_err() {
                self.fault(URI, "it is no path");
                return None;
            }
            return Some(ContainerRole::Task(Secret(uri.to_owned())));
        }
        let url = self.own_host(URI, Some(uri), &AGENTS)?;
        let Some(token_file) = said.s3_container_token_file.clone() else {
            self.fault(
                URI,
                "--s3-container-token-file (AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE) belongs to a whole URL",
            );
            return None;
        };
        Some(ContainerRole::Pod { url, token_file })
    }

    /// A URL that keys are fetched from: without encryption only at this machine and where clouds keep them.
    fn own_host(&mut self, name: &str, url: Option<&str>, known: &[&str]) -> Option<String> {
        let url = url?;
        let at_known = |uri: &http::Uri| {
            let ip = uri.host().and_then(ip_of);
            known.iter().any(|known| known.parse().is_ok_and(|known: std::net::IpAddr| ip == Some(known)))
        };
        let plain_allowed = url.parse().as_ref().is_ok_and(at_known);
        match web_address(url, plain_allowed) {
            Ok(url) => Some(url),
            Err(reason) => {
                self.fault(name, reason);
                None
            }
        }
    }
}
