//! The dry run: the plan that would be applied to a base of a given shape, or every reason for refusal. Needs no server
//! and no base weights.

use std::{fmt, path::Path};

use serde::Serialize;

use super::{AdapterCard, AdapterError, AdapterLimits, Refusal, fingerprint, folder::AdapterFiles, peft, source};
use crate::{
    config::AdapterConfig,
    model::{ModelShape, Site},
    terms::{AdapterVersion, Digest},
};

/// What an adapter changes, site by site.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterPlan {
    pub version: AdapterVersion,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<String>,
    /// The base that it was made for, by its first digits, as its card says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_digest: Option<String>,
    /// Bytes of the weights' file.
    pub file_bytes: u64,
    pub sites: Vec<PlannedSite>,
    /// What a person should know, one sentence each.
    pub notes: Vec<String>,
}

/// One site: `y = base(x) + scale · B(A x)` with A `[rank, inputs]` and B `[outputs, rank]`. Without a low rank, `rank` is 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedSite {
    pub module: String,
    pub rank: usize,
    pub alpha: f64,
    pub scale: f32,
    pub inputs: usize,
    pub outputs: usize,
    pub shape: SiteShape,
    /// Of A, as it stands in the file.
    pub dtype: &'static str,
    /// `lora`, `dora`, `bias` (a trained bias alone) or `full` (a whole matrix in the base's place).
    pub kind: &'static str,
}

/// Rows and columns of the two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SiteShape {
    #[serde(rename = "A")]
    pub a: [usize; 2],
    #[serde(rename = "B")]
    pub b: [usize; 2],
}

impl PlannedSite {
    pub(super) fn new(
        site: Site,
        shape: [usize; 3],
        alpha: f64,
        scale: f32,
        dtype: &'static str,
        kind: &'static str,
    ) -> Self {
        let [outputs, rank, inputs] = shape;
        let shape = SiteShape { a: [rank, inputs], b: [outputs, rank] };
        Self { module: site.to_string(), rank, alpha, scale, inputs, outputs, shape, dtype, kind }
    }

    /// The last part of the path: `q_proj`.
    pub(super) fn short_name(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or(&self.module)
    }
}

impl AdapterPlan {
    pub(super) fn new(version: AdapterVersion, card: &AdapterCard, sites: Vec<PlannedSite>) -> Self {
        Self {
            version,
            description: card.description.clone(),
            trained_on: card.trained_on.clone(),
            base_digest: card.base_digest.clone(),
            file_bytes: card.file_bytes,
            sites,
            notes: card.notes.clone(),
        }
    }
}

impl fmt::Display for AdapterPlan {
    /// A table, one row for each site.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "version  {}", self.version.short())?;
        if let Some(description) = &self.description {
            writeln!(f, "about    {description}")?;
        }
        if let Some(trained_on) = &self.trained_on {
            writeln!(f, "base     {trained_on} (as the file says)")?;
        }
        writeln!(f, "weights  {} bytes, {} sites\n", self.file_bytes, self.sites.len())?;
        let header = ["module", "rank", "alpha", "scale", "A", "B", "dtype", "kind"].map(str::to_owned);
        let rows: Vec<[String; 8]> = std::iter::once(header)
            .chain(self.sites.iter().map(|site| {
                [
                    site.module.clone(),
                    site.rank.to_string(),
                    site.alpha.to_string(),
                    site.scale.to_string(),
                    format!("{}×{}", site.rank, site.inputs),
                    format!("{}×{}", site.outputs, site.rank),
                    site.dtype.to_owned(),
                    site.kind.to_owned(),
                ]
            }))
            .collect();
        let mut widths = [0usize; 8];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &rows {
            let mut line = format!("{:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "\nnote: {note}"))
    }
}

/// Checks one folder against a base's shape.
///
/// # Errors
/// Every fault that was found.
pub fn check_folder(path: &Path, shape: &ModelShape, limits: AdapterLimits) -> Result<AdapterPlan, Vec<Refusal>> {
    let files = AdapterFiles::read(path, path, limits.max_file_bytes)?;
    peft::read(&files, shape, limits, None).map(|adapter| adapter.plan)
}

/// Compares the plan with a base's names, and its digest if the adapter's card gives one; `digest` reads it.
///
/// # Errors
/// The refusal of an adapter that was made for another base.
pub fn compare_base<E>(
    mut plan: AdapterPlan,
    names: &[String],
    digest: impl FnOnce() -> Result<Digest, E>,
) -> Result<Result<AdapterPlan, Vec<Refusal>>, E> {
    if let Some(wanted) = plan.base_digest.as_deref()
        && let Some(refusal) = fingerprint::digest_refusal(Some(wanted), digest()?)
    {
        return Ok(Err(vec![refusal]));
    }
    plan.notes.extend(fingerprint::name_note(plan.trained_on.as_deref(), names));
    Ok(Ok(plan))
}

/// What a dry run found: a name and its plan, or why it is refused.
pub type Checked = (String, Result<AdapterPlan, Vec<Refusal>>);

/// Checks every adapter that a server with this configuration would read, in its order.
///
/// # Errors
/// If a configured folder of adapters is not there.
pub fn check_configured(config: &AdapterConfig, shape: &ModelShape) -> Result<Vec<Checked>, AdapterError> {
    let findings = source::configured(config)?;
    let limits = AdapterLimits::from(config);
    let read = |found: source::Found| {
        let files = AdapterFiles::read(&found.root, &found.path, limits.max_file_bytes);
        let plan = files.and_then(|files| peft::read(&files, shape, limits, None)).map(|adapter| adapter.plan);
        (found.name.to_string(), plan)
    };
    let refused = findings.refused.into_iter().map(|(name, refusal)| (name, Err(vec![refusal])));
    Ok(findings.found.into_iter().map(read).chain(refused).collect())
}
