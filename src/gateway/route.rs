//! From the `model` of a request to the weights that answer it.

use super::{AskError, Caller};
use crate::{
    adapters::{AdapterError, AdapterStore, nearest},
    terms::{AdapterName, AdapterVersion},
};

/// The weights that answer a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Base,
    Adapter { name: AdapterName, version: AdapterVersion },
}

/// Reads `model`: an exact name wins before anything is parsed; then `base:adapter`, then `adapter@<version prefix>`.
///
/// # Errors
/// [`AskError::UnknownModel`] with the nearest name that the caller may use, [`AskError::ModelNotAllowed`], or why the
/// adapter of that name does not serve.
pub fn choose(model: &str, caller: &Caller, base_names: &[String], adapters: &AdapterStore) -> Result<Route, AskError> {
    let route = find(model, base_names, adapters).map_err(|error| match error {
        AdapterError::Unknown { .. } => {
            let adapters = adapters.list();
            let known = base_names.iter().map(String::as_str).chain(adapters.iter().map(|entry| entry.name.as_str()));
            // Of a compound name it is the adapter's part that may be misspelled.
            let wanted = after_base(model, base_names).unwrap_or(model);
            let wanted = wanted.rsplit_once('@').map_or(wanted, |(name, _)| name);
            let nearest = nearest(wanted, known.filter(|name| allowed(caller, name))).map(str::to_owned);
            AskError::UnknownModel { model: shown(model), nearest }
        }
        // Why an adapter does not serve is for those who may use it.
        AdapterError::Refused { name, .. } if !allowed(caller, &name) => {
            AskError::ModelNotAllowed { model: shown(model) }
        }
        error => AskError::Adapter(error),
    })?;
    let may_use = match &route {
        Route::Base => base_names.iter().any(|name| allowed(caller, name)),
        Route::Adapter { name, .. } => allowed(caller, name.as_str()),
    };
    if may_use { Ok(route) } else { Err(AskError::ModelNotAllowed { model: shown(model) }) }
}

fn find(model: &str, base_names: &[String], adapters: &AdapterStore) -> Result<Route, AdapterError> {
    let is_base = |name: &str| base_names.iter().any(|base| base == name);
    if is_base(model) {
        return Ok(Route::Base);
    }
    let exact = adapters.find(model);
    if !matches!(exact, Err(AdapterError::Unknown { .. })) {
        return exact.map(|(name, version)| Route::Adapter { name, version });
    }
    let adapter = after_base(model, base_names);
    if let Some(adapter) = adapter {
        let found = adapters.find(adapter);
        if !matches!(found, Err(AdapterError::Unknown { .. })) {
            return found.map(|(name, version)| Route::Adapter { name, version });
        }
    }
    match adapter.unwrap_or(model).rsplit_once('@') {
        Some((name, prefix)) => {
            adapters.find_version(name, prefix).map(|(name, version)| Route::Adapter { name, version })
        }
        None => exact.map(|(name, version)| Route::Adapter { name, version }),
    }
}

/// The adapter of `base:adapter`. A base's name may itself hold a colon, so every split is tried.
fn after_base<'a>(model: &'a str, base_names: &[String]) -> Option<&'a str> {
    let is_base = |name: &str| base_names.iter().any(|base| base == name);
    model.match_indices(':').find(|(at, _)| is_base(&model[..*at])).map(|(at, _)| &model[at + 1..])
}

/// The adapter that `model` may mean if it is not known yet, and if the caller may use it: a bare name, or one behind the
/// base's.
pub fn may_be(model: &str, caller: &Caller, base_names: &[String]) -> Option<AdapterName> {
    let name = AdapterName::parse(after_base(model, base_names).unwrap_or(model)).ok()?;
    allowed(caller, name.as_str()).then_some(name)
}

fn allowed(caller: &Caller, name: &str) -> bool {
    caller.models.as_ref().is_none_or(|models| models.iter().any(|model| model == name))
}

/// A name as an error message repeats it: no control characters, not endless.
fn shown(model: &str) -> String {
    model.chars().take(AdapterName::MAX_BYTES).flat_map(char::escape_debug).collect()
}
