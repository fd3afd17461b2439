//! Every route that is served, once: the router, the guard and the OpenAPI document are made from this list.

use axum::{
    extract::{MatchedPath, Request},
    routing::{MethodRouter, delete, get, post},
};
use http::Method;

use super::{
    AppState,
    admin::{adapters, flags},
    feedback, journal,
    openai::{create, models, stored, tokens},
    openapi, ops, replay,
};

/// One method of one path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    ChatCompletions,
    Completions,
    ListStored,
    GetStored,
    UpdateStored,
    DeleteStored,
    StoredMessages,
    Models,
    Model,
    Tokenize,
    Detokenize,
    Replay,
    SearchJournal,
    TailJournal,
    ExportJournal,
    ImportJournal,
    EraseUser,
    JournalAccess,
    NoteAccess,
    GetJournal,
    GiveFeedback,
    ListFeedback,
    GetFeedback,
    RetractFeedback,
    ListFlags,
    ExportFlags,
    GetFlag,
    ResolveFlag,
    FlagRules,
    TryFlagRules,
    ApplyFlagRules,
    LoadAdapter,
    UnloadAdapter,
    ListAdapters,
    CheckAdapter,
    GetAdapter,
    RollbackAdapter,
    ReleaseAdapter,
    Health,
    Ready,
    Metrics,
    Version,
    OpenApi,
}

impl Route {
    pub const ALL: &'static [Self] = &[
        Self::ChatCompletions,
        Self::Completions,
        Self::ListStored,
        Self::GetStored,
        Self::UpdateStored,
        Self::DeleteStored,
        Self::StoredMessages,
        Self::Models,
        Self::Model,
        Self::Tokenize,
        Self::Detokenize,
        Self::Replay,
        Self::SearchJournal,
        Self::TailJournal,
        Self::ExportJournal,
        Self::ImportJournal,
        Self::EraseUser,
        Self::JournalAccess,
        Self::NoteAccess,
        Self::GetJournal,
        Self::GiveFeedback,
        Self::ListFeedback,
        Self::GetFeedback,
        Self::RetractFeedback,
        Self::ListFlags,
        Self::ExportFlags,
        Self::GetFlag,
        Self::ResolveFlag,
        Self::FlagRules,
        Self::TryFlagRules,
        Self::ApplyFlagRules,
        Self::LoadAdapter,
        Self::UnloadAdapter,
        Self::ListAdapters,
        Self::CheckAdapter,
        Self::GetAdapter,
        Self::RollbackAdapter,
        Self::ReleaseAdapter,
        Self::Health,
        Self::Ready,
        Self::Metrics,
        Self::Version,
        Self::OpenApi,
    ];

    /// As the router matches it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions | Self::ListStored => "/v1/chat/completions",
            Self::GetStored | Self::UpdateStored | Self::DeleteStored => "/v1/chat/completions/{id}",
            Self::StoredMessages => "/v1/chat/completions/{id}/messages",
            Self::Completions => "/v1/completions",
            Self::Models => "/v1/models",
            Self::Model => "/v1/models/{*id}",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::Replay => "/admin/replay/{id}",
            Self::SearchJournal => "/v1/journal",
            Self::TailJournal => "/v1/journal/tail",
            Self::ExportJournal => "/v1/journal/export",
            Self::ImportJournal => "/v1/journal/import",
            Self::EraseUser => "/v1/journal/erase",
            Self::JournalAccess | Self::NoteAccess => "/v1/journal/access",
            Self::GetJournal => "/v1/journal/{id}",
            Self::GiveFeedback | Self::ListFeedback => "/v1/feedback",
            Self::GetFeedback | Self::RetractFeedback => "/v1/feedback/{id}",
            Self::ListFlags => "/v1/flags",
            Self::ExportFlags => "/v1/flags/export",
            Self::GetFlag | Self::ResolveFlag => "/v1/flags/{id}",
            Self::FlagRules => "/v1/flag-rules",
            Self::TryFlagRules => "/v1/flag-rules/try",
            Self::ApplyFlagRules => "/v1/flag-rules/apply",
            Self::LoadAdapter => "/v1/load_lora_adapter",
            Self::UnloadAdapter => "/v1/unload_lora_adapter",
            Self::ListAdapters => "/v1/adapters",
            Self::CheckAdapter => "/v1/adapters/check",
            // A name may hold slashes; what stands behind it is for the handler.
            Self::GetAdapter | Self::RollbackAdapter | Self::ReleaseAdapter => "/v1/adapters/{*id}",
            Self::Health => "/health",
            Self::Ready => "/health/ready",
            Self::Metrics => "/metrics",
            Self::Version => "/version",
            Self::OpenApi => "/openapi.json",
        }
    }

    pub const fn method(self) -> Method {
        match self {
            Self::ChatCompletions
            | Self::Completions
            | Self::UpdateStored
            | Self::Tokenize
            | Self::Detokenize
            | Self::Replay
            | Self::ImportJournal
            | Self::EraseUser
            | Self::NoteAccess
            | Self::GiveFeedback
            | Self::ResolveFlag
            | Self::TryFlagRules
            | Self::ApplyFlagRules
            | Self::LoadAdapter
            | Self::UnloadAdapter
            | Self::CheckAdapter
            | Self::RollbackAdapter
            | Self::ReleaseAdapter => Method::POST,
            Self::DeleteStored | Self::RetractFeedback => Method::DELETE,
            Self::ListStored
            | Self::ListFeedback
            | Self::GetFeedback
            | Self::ListFlags
            | Self::ExportFlags
            | Self::GetFlag
            | Self::FlagRules
            | Self::GetStored
            | Self::StoredMessages
            | Self::Models
            | Self::Model
            | Self::SearchJournal
            | Self::TailJournal
            | Self::ExportJournal
            | Self::JournalAccess
            | Self::GetJournal
            | Self::ListAdapters
            | Self::GetAdapter
            | Self::Health
            | Self::Ready
            | Self::Metrics
            | Self::Version
            | Self::OpenApi => Method::GET,
        }
    }

    /// Whether it answers without a key. Probes and scrapers cannot send one, and what they get is nobody's secret.
    pub const fn is_open(self) -> bool {
        match self {
            Self::Health | Self::Ready | Self::Metrics | Self::Version | Self::OpenApi => true,
            Self::ChatCompletions
            | Self::Completions
            | Self::ListStored
            | Self::GetStored
            | Self::UpdateStored
            | Self::DeleteStored
            | Self::StoredMessages
            | Self::Models
            | Self::Model
            | Self::Tokenize
            | Self::Detokenize
            | Self::Replay
            | Self::SearchJournal
            | Self::TailJournal
            | Self::ExportJournal
            | Self::ImportJournal
            | Self::EraseUser
            | Self::JournalAccess
            | Self::NoteAccess
            | Self::GetJournal
            | Self::GiveFeedback
            | Self::ListFeedback
            | Self::GetFeedback
            | Self::RetractFeedback
            | Self::ListFlags
            | Self::ExportFlags
            | Self::GetFlag
            | Self::ResolveFlag
            | Self::FlagRules
            | Self::TryFlagRules
            | Self::ApplyFlagRules
            | Self::LoadAdapter
            | Self::UnloadAdapter
            | Self::ListAdapters
            | Self::CheckAdapter
            | Self::GetAdapter
            | Self::RollbackAdapter
            | Self::ReleaseAdapter => false,
        }
    }

    /// Whether it is for those who may change what is served.
    pub const fn is_admin(self) -> bool {
        matches!(
            self,
            Self::LoadAdapter
                | Self::UnloadAdapter
                | Self::ListAdapters
                | Self::CheckAdapter
                | Self::GetAdapter
                | Self::RollbackAdapter
                | Self::ReleaseAdapter
        )
    }

    /// As people and documents see it.
    pub fn shown_path(self) -> String {
        let path = self.path().replace("{*id}", "{id}");
        if self == Self::RollbackAdapter {
            path + "/rollback"
        } else if self == Self::ReleaseAdapter {
            path + "/release"
        } else {
            path
        }
    }

    /// Whether machines ask for it all the time.
    pub const fn is_routine(self) -> bool {
        matches!(self, Self::Health | Self::Ready | Self::Metrics)
    }

    pub(super) fn handler(self) -> MethodRouter<AppState> {
        match self {
            Self::ChatCompletions => post(create::chat),
            Self::Completions => post(create::completions),
            Self::ListStored => get(stored::list),
            Self::GetStored => get(stored::get),
            Self::UpdateStored => post(stored::update),
            Self::DeleteStored => delete(stored::delete),
            Self::StoredMessages => get(stored::messages),
            Self::Models => get(models::list),
            Self::Model => get(models::get),
            Self::Tokenize => post(tokens::tokenize),
            Self::Detokenize => post(tokens::detokenize),
            Self::Replay => post(replay::create),
            Self::SearchJournal => get(journal::search),
            Self::TailJournal => get(journal::tail),
            Self::ExportJournal => get(journal::export),
            Self::ImportJournal => post(journal::import),
            Self::EraseUser => post(journal::erase),
            Self::JournalAccess => get(journal::access),
            Self::NoteAccess => post(journal::note_access),
            Self::GetJournal => get(journal::get),
            Self::GiveFeedback => post(feedback::give),
            Self::ListFeedback => get(feedback::list),
            Self::GetFeedback => get(feedback::get),
            Self::RetractFeedback => delete(feedback::retract),
            Self::ListFlags => get(flags::list),
            Self::ExportFlags => get(flags::export),
            Self::GetFlag => get(flags::get),
            Self::ResolveFlag => post(flags::resolve),
            Self::FlagRules => get(flags::rules),
            Self::TryFlagRules => post(flags::try_rules),
            Self::ApplyFlagRules => post(flags::apply),
            Self::LoadAdapter => post(adapters::load),
            Self::UnloadAdapter => post(adapters::unload),
            Self::ListAdapters => get(adapters::list),
            Self::CheckAdapter => post(adapters::check),
            Self::GetAdapter => get(adapters::get),
            Self::RollbackAdapter => post(adapters::act),
            // The same method of the same path: the other's handler tells them apart.
            Self::ReleaseAdapter => MethodRouter::new(),
            Self::Health => get(ops::health),
            Self::Ready => get(ops::ready),
            Self::Metrics => get(ops::metrics),
            Self::Version => get(ops::version),
            Self::OpenApi => get(openapi::document),
        }
    }

    /// A route at the matched path of a request; the path alone says whether it is open, and for whom.
    pub fn of(request: &Request) -> Option<Self> {
        let path = request.extensions().get::<MatchedPath>()?;
        Self::ALL.iter().copied().find(|route| route.path() == path.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_closed_and_admin_routes_share_no_path() {
        for one in Route::ALL {
            for other in Route::ALL {
                assert!(
                    one.path() != other.path()
                        || (one.is_open(), one.is_admin()) == (other.is_open(), other.is_admin()),
                    "{one:?} and {other:?}"
                );
            }
        }
    }
}
