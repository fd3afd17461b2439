//! Buckets that are read with the keys of a role: where those are fetched, who gets to see them, and what is refused.

use std::{fs, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tunegate::{
    adapters::source::{SourceError, Sources},
    config::{
        AdapterConfig, ContainerRole, DEFAULT_REGION, FetchConfig, S3Credentials, Secret, WebIdentity, parse_source,
    },
};

use super::draft::golden;
use crate::support::depot::{Depot, Proxy};

/// A bucket, the desk where keys are given out, and what both were asked.
struct Cloud {
    bucket: Proxy,
    desk: Depot,
    asked: Proxy,
    folder: TempDir,
}

impl Cloud {
    fn new() -> Self {
        let store = Depot::start();
        store.put("/adapters/prod/triage", &golden("adapters/llama/rank-1"));
        let desk = Depot::start();
        let asked = Proxy::before(desk.address);
        Self { bucket: Proxy::before(store.address), desk, asked, folder: tempfile::tempdir().unwrap() }
    }

    fn desk_url(&self) -> String {
        self.asked.url()
    }

    /// A file with a token in it.
    fn token(&self, token: &str) -> std::path::PathBuf {
        let path = self.folder.path().join("token");
        fs::write(&path, token).unwrap();
        path
    }

    fn open(&self, credentials: S3Credentials, options: &str) -> Result<Sources, SourceError> {
        let source = format!("bucket=s3://adapters/prod?endpoint={}{options}", self.bucket.url());
        let config = AdapterConfig {
            sources: vec![parse_source(&source, DEFAULT_REGION).unwrap()],
            s3: credentials,
            fetch: FetchConfig { stall: Duration::from_secs(5), ..FetchConfig::default() },
            ..AdapterConfig::default()
        };
        Sources::open(&config, self.folder.path().join("fetched"))
    }

    /// Fetches the adapter; gives the heads of the requests that the bucket got for it.
    async fn fetch(&self, sources: &Sources) -> Result<Vec<String>, SourceError> {
        let before = self.bucket.requests().len();
        let place = sources.place("bucket:triage").unwrap();
        sources.open_place(&place).await?;
        Ok(self.bucket.requests().split_off(before).into_iter().map(|head| head.to_lowercase()).collect())
    }

    /// Heads of what the desk was asked.
    fn asked(&self) -> Vec<String> {
        self.asked.requests()
    }
}

/// Keys as containers and machines get them.
fn keys(id: &str, until: &str) -> String {
    json!({"AccessKeyId": id, "SecretAccessKey": "secret", "Token": format!("session-{id}"), "Expiration": until})
        .to_string()
}

const LATER: &str = "2099-01-01T00:00:00Z";
/// So near that they are fetched anew for the next request.
const OVER: &str = "2020-01-01T00:00:00Z";

/// Whether all of these were signed with the keys of this name.
fn signed_with(heads: &[String], id: &str) -> bool {
    let (key, session) = (format!("credential={id}/"), format!("x-amz-security-token: session-{id}\r\n"));
    !heads.is_empty() && heads.iter().all(|head| head.contains(&key) && head.contains(&session))
}

#[tokio::test]
async fn a_service_accounts_token_is_changed_for_keys_which_are_fetched_anew_before_they_end() {
    let cloud = Cloud::new();
    let answer = |id: &str, until: &str| {
        format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
             <AccessKeyId>{id}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>session-{id}</SessionToken>\
             <Expiration>{until}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )
    };
    cloud.desk.put_file("/", answer("one", OVER));
    let role = WebIdentity {
        token_file: cloud.token("first-token"),
        role_arn: "arn:aws:iam::1:role/adapters".to_owned(),
        session_name: None,
        endpoint: Some(cloud.desk_url()),
    };
    let sources = cloud.open(S3Credentials::WebIdentity(role), "").unwrap();
    assert!(signed_with(&cloud.fetch(&sources).await.unwrap(), "one"));
    let asked = cloud.asked()[0].clone();
    for part in [
        "POST /?Action=AssumeRoleWithWebIdentity",
        "WebIdentityToken=first-token",
        "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fadapters",
        "RoleSessionName=tunegate",
    ] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }

    // Both the token and the keys change while the server runs.
    cloud.token("second-token");
    cloud.desk.put_file("/", answer("two", LATER));
    assert!(signed_with(&cloud.fetch(&sources).await.unwrap(), "two"));
    assert!(cloud.asked().last().unwrap().contains("WebIdentityToken=second-token"));
    let count = cloud.asked().len();
    assert!(signed_with(&cloud.fetch(&sources).await.unwrap(), "two"));
    assert_eq!(cloud.asked().len(), count, "keys that hold are not asked for again");
}

#[tokio::test]
async fn a_pods_agent_and_a_machines_service_give_keys() {
    let cloud = Cloud::new();
    cloud.desk.put_file("/v1/credentials", keys("pod", LATER));
    let url = format!("{}/v1/credentials", cloud.desk_url());
    let role = ContainerRole::Pod { url, token_file: cloud.token("pod-token") };
    let sources = cloud.open(S3Credentials::Container(role), "").unwrap();
    assert!(signed_with(&cloud.fetch(&sources).await.unwrap(), "pod"));
    assert!(cloud.asked()[0].to_lowercase().contains("authorization: pod-token\r\n"), "{}", cloud.asked()[0]);

    let roles = "/latest/meta-data/iam/security-credentials/";
    cloud.desk.put_file("/latest/api/token", "session");
    cloud.desk.put_file(roles, "worker");
    cloud.desk.put_file(&format!("{roles}worker"), keys("machine", LATER));
    let sources = cloud.open(S3Credentials::Instance { endpoint: Some(cloud.desk_url()) }, "").unwrap();
    assert!(signed_with(&cloud.fetch(&sources).await.unwrap(), "machine"));
    let last = cloud.asked().last().unwrap().to_lowercase();
    assert!(last.contains("x-aws-ec2-metadata-token: session\r\n"), "{last}");
}

#[tokio::test]
async fn without_keys_nothing_is_fetched_and_the_reason_is_said() {
    let cloud = Cloud::new();
    let missing = cloud.open(S3Credentials::Instance { endpoint: Some(cloud.desk_url()) }, "").unwrap();
    let error = cloud.fetch(&missing).await.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable(_)), "{error:?}");
    assert!(cloud.bucket.requests().is_empty());

    let gone = WebIdentity {
        token_file: cloud.folder.path().join("nothing"),
        role_arn: "arn".to_owned(),
        session_name: None,
        endpoint: Some(cloud.desk_url()),
    };
    let sources = cloud.open(S3Credentials::WebIdentity(gone), "").unwrap();
    let error = cloud.fetch(&sources).await.unwrap_err().to_string();
    assert!(error.contains("token file"), "{error}");
}

#[tokio::test]
async fn a_bucket_that_anybody_may_read_is_asked_without_a_signature_where_that_is_said() {
    let cloud = Cloud::new();
    let role = ContainerRole::Task(Secret("/v2/credentials/x".to_owned()));
    let sources = cloud.open(S3Credentials::Container(role), "&unsigned").unwrap();
    let heads = cloud.fetch(&sources).await.unwrap();
    assert!(heads.iter().all(|head| !head.contains("authorization")), "{heads:?}");
    assert!(cloud.asked().is_empty());
}
