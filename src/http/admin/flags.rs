//! `/v1/flags` and `/v1/flag-rules`: what rules found, what people made of it, and the rules themselves.

use axum::{
    Extension, Json,
    body::Body,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    feedback::{
        RuleSet,
        export::{self, Shape, Wanted},
    },
    http::{
        AppState,
        auth::{Identity, Role},
        body::JsonBody,
        error::ApiError,
        openai::fields::{Fields, shown},
    },
    journal::{Access, Deed, FlagQuery, FlagState, Journal, KeptFlag, KeptRule, Order, Resolved, Verdict},
    stats,
    terms::Moment,
};

const PAGE: usize = 20;
const MAX_PAGE: usize = 100;
/// Flags of one completion that are shown with it.
const OF_ONE: usize = 1000;
const MAX_NOTE_BYTES: usize = 4096;
const MAX_RULES_BYTES: usize = 1 << 20;
/// Answers of the past that rules are tried on, unless the request says otherwise, and at most.
const TRY_LAST: usize = 1000;
const MOST_TRIED: usize = 100_000;
/// What a low score means, wherever it is shown.
const OF_CONFIDENCE: &str =
    "low confidence is a reason to look, never a measure of truth: a version can be sure and wrong";

/// GET /v1/flags
pub async fn list(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    reviews(&identity)?;
    let Query(pairs) = query.map_err(|_| ApiError::invalid("query", "the query string cannot be read"))?;
    let journal = app.gateway().journal();
    let page = journal.flags(list_query(pairs)?).await?;
    let rules = journal.flag_rules().await?;
    let data: Vec<Value> = page.flags.iter().map(|flag| shown_flag(flag, &rules)).collect();
    let ends = [page.flags.first(), page.flags.last()].map(|flag| flag.map(|flag| flag_id(flag.id)));
    let list = json!({
        "object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": page.more,
        "note": OF_CONFIDENCE,
    });
    Ok(Json(list).into_response())
}

/// GET /v1/flags/export: flagged answers as lines of JSON, or as training rows.
pub async fn export(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Response, ApiError> {
    reviews(&identity)?;
    let Query(pairs) = query.map_err(|_| ApiError::invalid("query", "the query string cannot be read"))?;
    let (wanted, shape, summary) = export_query(pairs)?;
    let journal = app.gateway().journal();
    if summary {
        let summary = export::summary(journal, wanted, shape).await?;
        let value = json!({"object": "flags.export", "lines": summary.lines, "left_out": summary.left_out});
        return Ok(Json(value).into_response());
    }
    let what = json!({"flagged": true, "format": shape.as_str(), "rule": wanted.rule, "adapter": wanted.adapter});
    journal.note(Access::once(Moment::unix_ms(), &identity.who(), Deed::Export, what)).await?;
    let mut response = Response::new(Body::from_stream(export::lines(journal, wanted, shape)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Which flags, what lines, and whether only a summary is wanted.
pub fn export_query(pairs: Vec<(String, String)>) -> Result<(Wanted, Shape, bool), ApiError> {
    let mut wanted = Wanted { rule: None, adapter: None, state: FlagState::All };
    let (mut shape, mut summary) = (Shape::Plain, false);
    for (name, value) in pairs {
        let one_of = |words: &str| {
            ApiError::invalid(name.clone(), format!("{name} must be one of {words}; it is '{}'", shown(&value)))
        };
        match name.as_str() {
            "format" => shape = Shape::parse(&value).ok_or_else(|| one_of("jsonl, openai, trl"))?,
            "summary" => summary = value.parse().map_err(|_| one_of("true, false"))?,
            "rule" => wanted.rule = Some(value),
            "adapter" => wanted.adapter = Some(value),
            "state" => wanted.state = state(&value).ok_or_else(|| one_of("open, confirmed, dismissed, all"))?,
            unknown => {
                let message = format!("{} is no parameter of this route", shown(unknown));
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(shown(unknown)));
            }
        }
    }
    Ok((wanted, shape, summary))
}

fn state(word: &str) -> Option<FlagState> {
    match word {
        "all" => Some(FlagState::All),
        "open" => Some(FlagState::Open),
        verdict => Verdict::parse(verdict).map(FlagState::Resolved),
    }
}

/// GET /v1/flags/{id}: with question, answer, and what was said of it.
pub async fn get(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    reviews(&identity)?;
    let flag = find(&app, id).await?;
    let what = json!({"id": flag.completion, "flag": flag_id(flag.id)});
    let access = Access::once(Moment::unix_ms(), &identity.who(), Deed::Show, what);
    app.gateway().journal().note(access).await?;
    Ok(Json(whole(&app, &flag).await?).into_response())
}

/// POST /v1/flags/{id}: a verdict, or its withdrawal.
pub async fn resolve(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    id: Result<Path<String>, PathRejection>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    reviews(&identity)?;
    let flag = find(&app, id).await?;
    let mut fields = Fields::new(map);
    let verdict = fields.word("verdict", &["confirmed", "dismissed", "open"])?;
    let note = fields.string("note", MAX_NOTE_BYTES)?;
    nothing_else(fields)?;
    let Some(verdict) = verdict else {
        let message = "verdict is required: confirmed (something was wrong), dismissed (a false alarm) or open";
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).about("verdict"));
    };
    let resolved = Verdict::parse(&verdict).map(|verdict| Resolved {
        verdict,
        at_ms: Moment::unix_ms(),
        by: identity.who(),
        note,
    });
    let journal = app.gateway().journal();
    if !journal.resolve(flag.id, resolved).await? {
        return Err(missing(&flag_id(flag.id)));
    }
    let flag = journal.flag(flag.id).await?.ok_or_else(|| missing(&flag_id(flag.id)))?;
    Ok(Json(shown_flag(&flag, &journal.flag_rules().await?)).into_response())
}

/// GET /v1/flag-rules
pub async fn rules(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
) -> Result<Response, ApiError> {
    reviews(&identity)?;
    let flags = app.flags();
    let loaded = flags.loaded();
    let kept = app.gateway().journal().flag_rules().await?;
    let of = |version| kept.iter().find(|kept| kept.rule.version == version);
    let mut data: Vec<Value> = Vec::new();
    for rule in &loaded.rules.rules {
        let mut value = shown_rule(rule.settled.clone(), of(rule.version));
        value["version"] = json!(rule.version);
        value["description"] = json!(rule.description);
        value["in_force"] = json!(true);
        data.push(value);
    }
    for earlier in kept.iter().filter(|kept| !loaded.rules.rules.iter().any(|rule| rule.version == kept.rule.version)) {
        let settled = serde_json::from_str(&earlier.rule.definition).unwrap_or_default();
        let mut value = shown_rule(settled, Some(earlier));
        value["version"] = json!(earlier.rule.version);
        value["in_force"] = json!(false);
        data.push(value);
    }
    let again = flags.watch_again().borrow().map(|(at, to)| json!({"at": at.0, "to": to.0}));
    let (followed, durable) = (*flags.watch_followed().borrow(), *app.gateway().journal().watch_durable().borrow());
    Ok(Json(json!({
        "object": "list", "data": data, "digest": loaded.rules.digest, "faults": loaded.faults, "followed": followed.0,
        "durable": durable.0, "applying": again, "note": OF_CONFIDENCE,
    }))
    .into_response())
}

/// POST /v1/flag-rules/try: what rules would have found in the last answers. Nothing is written.
pub async fn try_rules(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    identity.reads_records()?;
    identity.has_role(Role::Admin)?;
    let mut fields = Fields::new(map);
    let text = fields.string("rules", MAX_RULES_BYTES)?;
    let last = fields.count("last", 1..=MOST_TRIED)?.unwrap_or(TRY_LAST);
    nothing_else(fields)?;
    let text = text.ok_or_else(|| {
        let message = "rules is required: the text of a TOML file";
        ApiError::new(StatusCode::BAD_REQUEST, "missing_required_parameter", message).about("rules")
    })?;
    // No files: what is in them is nobody's business who can only ask.
    let rules = RuleSet::parse(&text, None).map_err(malformed)?;
    let tried = app.flags().try_on_the_past(rules, last as u64).await?;
    let rules: Vec<Value> = tried
        .rules
        .iter()
        .map(|rule| {
            let examples: Vec<Value> = rule
                .examples
                .iter()
                .map(|example| {
                    let (adapter, version) = example.adapter.clone().unzip();
                    json!({
                        "completion_id": example.completion, "choice_index": example.position, "adapter": adapter,
                        "version": version, "reason": example.reason,
                    })
                })
                .collect();
            let interval = stats::wilson(rule.found, rule.looked, stats::ALPHA);
            json!({
                "name": rule.name, "version": rule.version, "looked": rule.looked, "found": rule.found,
                "share": share(rule.found, rule.looked), "interval": interval.map(|(low, high)| [low, high]),
                "needs_words": rule.needs_words, "examples": examples,
            })
        })
        .collect();
    Ok(Json(json!({
        "object": "flag_rules.tried", "answers": tried.answers, "without_words": tried.wordless, "from": tried.from.0,
        "to": tried.to.0, "rules": rules, "note": OF_CONFIDENCE,
    }))
    .into_response())
}

/// POST /v1/flag-rules/apply: the rules that hold now, on the last answers, in the background.
pub async fn apply(
    State(app): State<AppState>,
    Extension(identity): Extension<Identity>,
    JsonBody(map): JsonBody,
) -> Result<Response, ApiError> {
    identity.reads_records()?;
    identity.has_role(Role::Admin)?;
    let mut fields = Fields::new(map);
    let last = fields.count("last", 1..=usize::MAX >> 1)?;
    let names = fields.list("rules")?.unwrap_or_default();
    nothing_else(fields)?;
    let names = names
        .into_iter()
        .enumerate()
        .map(|(at, name)| crate::http::openai::fields::string_at(&format!("rules[{at}]"), name, 64))
        .collect::<Result<Vec<_>, _>>()?;
    let (from, to) = app.flags().again(&names, last.map_or(u64::MAX, |last| last as u64))?;
    Ok(Json(json!({"object": "flag_rules.applying", "from": from.0, "to": to.0})).into_response())
}

fn malformed(faults: Vec<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "flag_rules_malformed", faults.join("; ")).about("rules")
}

/// Flags show what was recorded of everybody.
fn reviews(identity: &Identity) -> Result<(), ApiError> {
    identity.reads_records()?;
    identity.has_role(Role::Reviewer)
}

fn nothing_else(fields: Fields) -> Result<(), ApiError> {
    match fields.rest().first() {
        None => Ok(()),
        Some(unknown) => {
            let message = format!("{unknown} is not known here");
            Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(unknown.clone()))
        }
    }
}

async fn find(app: &AppState, id: Result<Path<String>, PathRejection>) -> Result<KeptFlag, ApiError> {
    let Path(id) = id.map_err(|_| ApiError::invalid("id", "the id in the path is not UTF-8"))?;
    let number = id.strip_prefix("flag-").unwrap_or(&id).parse::<u64>().map_err(|_| missing(&id))?;
    app.gateway().journal().flag(number).await?.ok_or_else(|| missing(&id))
}

fn missing(id: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "flag_not_found", format!("there is no flag '{}'", shown(id))).about("id")
}

fn flag_id(id: u64) -> String {
    format!("flag-{id}")
}

fn share(of: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| of as f64 / all as f64)
}

/// A flag, with what is known of its rule's worth.
fn shown_flag(flag: &KeptFlag, rules: &[KeptRule]) -> Value {
    let (adapter, version) = flag.adapter.clone().unzip();
    let rule = rules.iter().find(|kept| kept.rule.version == flag.rule_version);
    let resolved = flag.resolved.as_ref().map(|resolved| {
        json!({
            "verdict": resolved.verdict, "at": resolved.at_ms / 1000, "by": resolved.by, "note": resolved.note,
        })
    });
    json!({
        "object": "flag", "id": flag_id(flag.id), "at": flag.at_ms / 1000, "completion_id": flag.completion,
        "choice_index": flag.position, "rule": flag.rule, "rule_version": flag.rule_version, "reason": flag.reason,
        "value": flag.value, "created": flag.created_ms / 1000, "model": flag.model, "adapter": adapter, "version": version,
        "key": flag.key, "state": flag.resolved.as_ref().map_or("open", |resolved| resolved.verdict.as_str()),
        "resolved": resolved, "precision": rule.map(precision),
    })
}

/// How many of a rule's flags were right, of those that somebody looked at.
fn precision(rule: &KeptRule) -> Value {
    let judged = rule.confirmed + rule.dismissed;
    let interval = stats::wilson(rule.confirmed, judged, stats::ALPHA);
    json!({
        "confirmed": rule.confirmed, "dismissed": rule.dismissed, "share": share(rule.confirmed, judged),
        "interval": interval.map(|(low, high)| [low, high]),
    })
}

fn shown_rule(mut settled: Value, kept: Option<&KeptRule>) -> Value {
    settled["object"] = json!("flag_rule");
    settled["since"] = json!(kept.map(|kept| kept.since_ms / 1000));
    settled["flags"] = json!(kept.map_or(0, |kept| kept.flags));
    settled["precision"] = json!(kept.map(precision));
    let looked = kept.map_or(Vec::new(), |kept| kept.spans.iter().map(|(from, to)| [from.0, to.0]).collect());
    settled["looked"] = json!(looked);
    settled
}

/// A flag with everything that helps to judge it.
async fn whole(app: &AppState, flag: &KeptFlag) -> Result<Value, ApiError> {
    let journal = app.gateway().journal();
    let mut value = shown_flag(flag, &journal.flag_rules().await?);
    let completion = journal.get(&flag.completion).await?;
    let content = completion.as_ref().and_then(|completion| completion.content.as_ref());
    value["question"] =
        json!(content.map(|content| content.prompts.iter().map(|prompt| &prompt.given).collect::<Vec<_>>()));
    let choice = completion
        .as_ref()
        .and_then(|completion| completion.choices.iter().find(|choice| choice.index == flag.position));
    value["answer"] = json!(choice.and_then(|choice| choice.text.as_ref()));
    value["ending"] = json!(choice.map(|choice| choice.ending.as_str()));
    value["erased"] = json!(completion.as_ref().and_then(|completion| completion.erased_ms).map(|ms| ms / 1000));
    let said = journal.feedback_on(vec![flag.completion.clone()]).await?;
    value["feedback"] = said.iter().map(crate::http::feedback::shown_feedback).collect();
    let others = flags_of(journal, &flag.completion).await?;
    let own = json!(flag_id(flag.id));
    value["others"] = others.as_array().into_iter().flatten().filter(|other| other["id"] != own).cloned().collect();
    Ok(value)
}

/// Every flag of a completion, in short.
pub async fn flags_of(journal: &Journal, completion: &str) -> Result<Value, ApiError> {
    let query = FlagQuery {
        rule: None,
        adapter: None,
        completion: Some(completion.to_owned()),
        state: FlagState::All,
        after: None,
        limit: OF_ONE,
        order: Order::OldestFirst,
    };
    let page = journal.flags(query).await?;
    Ok(page
        .flags
        .iter()
        .map(|flag| {
            json!({
                "id": flag_id(flag.id), "choice_index": flag.position, "rule": flag.rule, "reason": flag.reason,
                "state": flag.resolved.as_ref().map_or("open", |resolved| resolved.verdict.as_str()),
            })
        })
        .collect())
}

fn list_query(pairs: Vec<(String, String)>) -> Result<FlagQuery, ApiError> {
    let mut query = FlagQuery {
        rule: None,
        adapter: None,
        completion: None,
        state: FlagState::Open,
        after: None,
        limit: PAGE,
        order: Order::NewestFirst,
    };
    for (name, value) in pairs {
        let one_of = |words: &str| {
            ApiError::invalid(name.clone(), format!("{name} must be one of {words}; it is '{}'", shown(&value)))
        };
        match name.as_str() {
            "rule" => query.rule = Some(value),
            "adapter" => query.adapter = Some(value),
            "completion_id" => query.completion = Some(value),
            "state" => {
                query.state = state(&value).ok_or_else(|| one_of("open, confirmed, dismissed, all"))?;
            }
            "after" => {
                let number = value.strip_prefix("flag-").unwrap_or(&value).parse();
                query.after = Some(number.map_err(|_| {
                    ApiError::invalid("after", format!("'{}' is no flag to list after", shown(&value)))
                })?);
            }
            "order" => {
                query.order = match value.as_str() {
                    "asc" => Order::OldestFirst,
                    "desc" => Order::NewestFirst,
                    _ => return Err(one_of("asc, desc")),
                }
            }
            "limit" => {
                query.limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or_else(|| {
                    let message = format!("limit must be between 1 and {MAX_PAGE}; it is '{}'", shown(&value));
                    ApiError::invalid("limit", message)
                })?;
            }
            unknown => {
                let message = format!("{} is no parameter of this route", shown(unknown));
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "unknown_parameter", message).about(shown(unknown)));
            }
        }
    }
    Ok(query)
}
