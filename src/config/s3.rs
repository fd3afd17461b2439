//! What proves to an S3-compatible store who asks, as the settings have it: keys, or a role whose keys are fetched and
//! change.

use std::path::PathBuf;

use super::Secret;

/// How requests to S3 sources are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum S3Credentials {
    /// Not at all: buckets that anybody may read.
    #[default]
    Unsigned,
    Keys(S3Keys),
    WebIdentity(WebIdentity),
    Container(ContainerRole),
    /// The role of the machine, from its metadata service.
    Instance {
        /// The service's URL; `None` is where clouds have it.
        endpoint: Option<String>,
    },
}

/// Keys that somebody gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Keys {
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
}

/// A role that the token of a service account may take (in Kubernetes: IRSA).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebIdentity {
    /// Read anew whenever keys are fetched, since the token changes.
    pub token_file: PathBuf,
    pub role_arn: String,
    pub session_name: Option<String>,
    /// The URL of the service that gives keys for tokens; `None` is AWS's in the bucket's region.
    pub endpoint: Option<String>,
}

/// The role of a container or pod, from the agent beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerRole {
    /// A path at the agent of a task (ECS).
    Task(Secret),
    /// An agent's whole URL, and the token that it wants to see (in Kubernetes: Pod Identity).
    Pod { url: String, token_file: PathBuf },
}

/// Where AWS's own programs look, and which setting it is here. What stands further down holds over what stands above.
pub const AWS_VARIABLES: &[(&str, &str)] = &[
    ("AWS_DEFAULT_REGION", "s3_region"),
    ("AWS_REGION", "s3_region"),
    ("AWS_ACCESS_KEY_ID", "s3_access_key_id"),
    ("AWS_SECRET_ACCESS_KEY", "s3_secret_access_key"),
    ("AWS_SESSION_TOKEN", "s3_session_token"),
    ("AWS_ROLE_ARN", "s3_role_arn"),
    ("AWS_ROLE_SESSION_NAME", "s3_role_session_name"),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "s3_web_identity_token_file"),
    ("AWS_ENDPOINT_URL_STS", "s3_sts_endpoint"),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "s3_container_credentials_uri"),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "s3_container_credentials_uri"),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "s3_container_token_file"),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "s3_metadata_endpoint"),
];
