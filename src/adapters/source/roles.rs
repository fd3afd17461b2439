//! Who signs requests to an S3 store, and where the keys of a role are fetched.

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use crate::config::{ContainerRole, S3Credentials, WebIdentity};

/// Where the keys of a role are given out.
pub struct Desk {
    pub url: String,
    /// Its host may resolve to a private address: the operator named it.
    pub private: bool,
}

/// Where ECS's agent is.
const TASK_AGENT: &str = "http://169.254.170.2";
/// Where machines in clouds find what they may know of themselves.
const METADATA: &str = "http://169.254.169.254";

/// Where keys for a bucket in this region are fetched; `None` where they are there, or not needed.
pub fn desk(credentials: &S3Credentials, region: &str) -> Option<Desk> {
    let named =
        |url: Option<&String>, default: String| Desk { private: url.is_some(), url: url.cloned().unwrap_or(default) };
    match credentials {
        S3Credentials::Unsigned | S3Credentials::Keys(_) => None,
        S3Credentials::WebIdentity(role) => {
            Some(named(role.endpoint.as_ref(), format!("https://sts.{region}.amazonaws.com")))
        }
        S3Credentials::Container(ContainerRole::Task(_)) => Some(named(None, TASK_AGENT.to_owned())),
        S3Credentials::Container(ContainerRole::Pod { url, .. }) => Some(named(Some(url), String::new())),
        S3Credentials::Instance { endpoint } => Some(named(endpoint.as_ref(), METADATA.to_owned())),
    }
}

/// Has a store sign as the settings say.
pub fn signing(builder: AmazonS3Builder, credentials: &S3Credentials) -> AmazonS3Builder {
    use AmazonS3ConfigKey as Key;
    match credentials {
        S3Credentials::Unsigned => builder.with_skip_signature(true),
        S3Credentials::Keys(keys) => {
            let builder =
                builder.with_access_key_id(&keys.access_key_id).with_secret_access_key(&keys.secret_access_key.0);
            match &keys.session_token {
                Some(token) => builder.with_token(&token.0),
                None => builder,
            }
        }
        S3Credentials::WebIdentity(WebIdentity { token_file, role_arn, session_name, endpoint }) => {
            let builder = builder
                .with_config(Key::WebIdentityTokenFile, token_file.display().to_string())
                .with_config(Key::RoleArn, role_arn)
                .with_config(Key::RoleSessionName, session_name.as_deref().unwrap_or("tunegate"));
            match endpoint {
                Some(endpoint) => builder.with_config(Key::StsEndpoint, endpoint),
                None => builder,
            }
        }
        S3Credentials::Container(ContainerRole::Task(path)) => {
            builder.with_config(Key::ContainerCredentialsRelativeUri, &path.0)
        }
        S3Credentials::Container(ContainerRole::Pod { url, token_file }) => builder
            .with_config(Key::ContainerCredentialsFullUri, url)
            .with_config(Key::ContainerAuthorizationTokenFile, token_file.display().to_string()),
        S3Credentials::Instance { endpoint } => builder.with_metadata_endpoint(endpoint.as_deref().unwrap_or(METADATA)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use object_store::{
        ClientOptions, ObjectStoreExt,
        client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
    };

    use super::*;
    use crate::config::Secret;

    /// Tells what would be asked, and answers nothing.
    #[derive(Clone, Debug, Default)]
    struct Asked(Arc<Mutex<Vec<String>>>);

    impl HttpConnector for Asked {
        fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
            Ok(HttpClient::new(self.clone()))
        }
    }

    #[async_trait]
    impl HttpService for Asked {
        async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
            self.0.lock().unwrap().push(request.uri().to_string());
            Err(HttpError::new(HttpErrorKind::Unknown, std::io::Error::other("nobody is there")))
        }
    }

    #[tokio::test]
    async fn keys_are_asked_for_at_the_desk_and_nowhere_else() {
        let token_file = tempfile::NamedTempFile::new().unwrap();
        let identity = WebIdentity {
            token_file: token_file.path().to_owned(),
            role_arn: "arn".to_owned(),
            session_name: None,
            endpoint: None,
        };
        let pod = ContainerRole::Pod {
            url: "http://169.254.170.23/v1/credentials".to_owned(),
            token_file: token_file.path().to_owned(),
        };
        for (credentials, url) in [
            (S3Credentials::WebIdentity(identity), "https://sts.eu-central-1.amazonaws.com"),
            (S3Credentials::Container(ContainerRole::Task(Secret("/v2/x".to_owned()))), "http://169.254.170.2/v2/x"),
            (S3Credentials::Container(pod), "http://169.254.170.23/v1/credentials"),
            (S3Credentials::Instance { endpoint: None }, "http://169.254.169.254/latest/api/token"),
        ] {
            let asked = Asked::default();
            let builder = AmazonS3Builder::new().with_bucket_name("adapters").with_region("eu-central-1");
            let store = signing(builder.with_http_connector(asked.clone()), &credentials).build().unwrap();
            assert!(store.head(&"x".into()).await.is_err());
            let desk = desk(&credentials, "eu-central-1").unwrap().url;
            let asked = asked.0.lock().unwrap().clone();
            assert!(!asked.is_empty() && asked.iter().all(|asked| asked.starts_with(url)), "{asked:?}");
            assert!(url.starts_with(&desk), "{desk}");
        }
        assert!(desk(&S3Credentials::Unsigned, "x").is_none());
    }
}
