//! What one step's adapters add to which rows: adapters of one rank together, by padded products over their stacks.
//!
//! How many operations that takes depends on how many different ranks and lengths there are, not on how many adapters; but for
//! those that change embedding or head ([`turns`]).

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Result, Tensor};

use super::{
    decoder::device_failed,
    lora::{LowRank, TensorAdapter},
    ops,
    stacks::{Owner, Stack, Stacks},
    turns::{self, Turns},
};
use crate::{
    model::{AdapterRows, LoraAdapter, Projection, StepError},
    terms::Digest,
};

/// The adapters of one step and how their rows are put together at each site.
pub struct StepDeltas<'a> {
    adapters: Vec<RowsOfAdapter<'a>>,
    /// For each layer and projection, the arrangement that serves it; `None` where no adapter changes it.
    sites: Vec<[Option<usize>; Projection::ALL.len()]>,
    arrangements: Vec<Arrangement>,
    stacks: &'a Stacks,
    turns: Turns,
}

/// One of the step's adapters.
pub struct RowsOfAdapter<'a> {
    adapter: &'a Arc<LoraAdapter>,
    pub weights: &'a TensorAdapter,
    /// Ascending.
    pub rows: &'a [u32],
}

impl<'a> RowsOfAdapter<'a> {
    pub fn owner(&self) -> Owner<'a> {
        (self.adapter, self.weights)
    }
}

/// The groups of all sites at which every adapter of the step has the same rank, or none.
struct Arrangement {
    groups: Vec<Group>,
    /// `[n]`: the batch row of each row of the groups' deltas, one group after the other; `None` if it is all rows in order.
    rows: Option<Tensor>,
}

/// Adapters of one rank with similarly many rows.
struct Group {
    rank: usize,
    /// Places among the step's adapters.
    members: Vec<usize>,
    /// Rows of each member, padded to the longest.
    length: usize,
    /// `[members · length]` batch rows; padding repeats the member's first. `None` if it is all rows in order.
    select: Option<Tensor>,
    /// `[n]`: which of the padded rows are real; `None` if all are.
    real: Option<Tensor>,
    weights: GroupWeights,
}

/// Where a group's matrices are.
enum GroupWeights {
    /// The only member's own.
    Own,
    /// Places in the stacks that follow each other, from this one on.
    Range(usize),
    /// `[members]` places in the stacks.
    Places(Tensor),
}

/// Members of a group to be, as places among the step's adapters.
struct Draft {
    rank: usize,
    members: Vec<usize>,
}

impl<'a> StepDeltas<'a> {
    /// # Errors
    /// [`StepError::ForeignAdapter`] if an adapter was packed for another decoder or another base.
    pub fn new(
        batch_rows: usize,
        adapters: &'a [AdapterRows],
        base: Digest,
        stacks: &'a mut Stacks,
        device: &Device,
    ) -> std::result::Result<Self, StepError> {
        let used = adapters.iter().filter(|adapter| !adapter.rows.is_empty());
        let adapters = used.map(|AdapterRows { rows, weights: adapter }| {
            let weights = adapter.packed::<TensorAdapter>().filter(|weights| weights.base == base);
            Ok(RowsOfAdapter { adapter, weights: weights.ok_or(StepError::ForeignAdapter)?, rows })
        });
        let adapters = adapters.collect::<std::result::Result<Vec<_>, StepError>>()?;
        stacks.start_step();
        let mut arranger = Arranger { adapters: &adapters, batch_rows, device, stacks };
        let (sites, arrangements) = arranger.arrange().map_err(device_failed)?;
        let turns = Turns::new(&adapters, stacks, device).map_err(device_failed)?;
        Ok(Self { adapters, sites, arrangements, stacks, turns })
    }

    /// The rows of `x` (`[rows, in]`) that adapters change at one of `projections`, for each arrangement that serves one.
    pub fn inputs(
        &self,
        x: &Tensor,
        layer: usize,
        projections: impl Iterator<Item = Projection>,
    ) -> Result<Vec<(usize, Vec<Tensor>)>> {
        let mut inputs: Vec<(usize, Vec<Tensor>)> = Vec::new();
        for projection in projections {
            let Some(arrangement) = self.arrangement_at(layer, projection) else { continue };
            if inputs.iter().all(|(other, _)| *other != arrangement) {
                let groups = &self.arrangements[arrangement].groups;
                let rows = groups.iter().map(|group| group.input(x)).collect::<Result<_>>()?;
                inputs.push((arrangement, rows));
            }
        }
        Ok(inputs)
    }

    /// Changes every adapter's rows of `base` (`[rows, out]`); the result is contiguous.
    pub fn apply(
        &self,
        base: Tensor,
        inputs: &[(usize, Vec<Tensor>)],
        layer: usize,
        projection: Projection,
    ) -> Result<Tensor> {
        let summed = self.add(base, inputs, layer, projection)?;
        self.turns.apply(summed, (&self.adapters, self.stacks), layer, projection)
    }

    /// Puts adapters' own embeddings of the batch's `tokens` in the place of the base's, `x` (`[rows, hidden]`).
    pub fn embed(&self, x: Tensor, tokens: &[u32]) -> Result<Tensor> {
        turns::embed(x, tokens, &self.adapters)
    }

    /// Puts adapters' own logits in the place of the base's, `logits` (`[n, vocab]`, `f32`), which come from `hidden` (`[n, hidden]`)
    /// of the batch rows `rows`.
    pub fn heads(&self, logits: Tensor, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        turns::heads(logits, hidden, rows, &self.adapters)
    }

    /// Adds every adapter's low-rank delta.
    fn add(
        &self,
        base: Tensor,
        inputs: &[(usize, Vec<Tensor>)],
        layer: usize,
        projection: Projection,
    ) -> Result<Tensor> {
        let base = ops::contiguous(&base)?;
        let Some(arrangement) = self.arrangement_at(layer, projection) else { return Ok(base) };
        let Some((_, rows)) = inputs.iter().find(|(other, _)| *other == arrangement) else {
            candle_core::bail!("no input was selected for {projection:?}")
        };
        let Arrangement { groups, rows: into } = &self.arrangements[arrangement];
        let deltas = groups.iter().zip(rows).map(|(group, x)| self.delta(group, x, layer, projection));
        let delta = ops::cast(&ops::join(&deltas.collect::<Result<Vec<_>>>()?, 0)?, base.dtype())?;
        match into {
            Some(into) => ops::index_add(&base, into, &delta),
            None => ops::add(&base, &delta),
        }
    }

    fn arrangement_at(&self, layer: usize, projection: Projection) -> Option<usize> {
        self.sites.get(layer)?[projection as usize]
    }

    /// `scale · (B (A x))` for `[members, length, in]`: `[n, out]` of the real rows, in `f32`.
    fn delta(&self, group: &Group, x: &Tensor, layer: usize, projection: Projection) -> Result<Tensor> {
        let missing = || candle_core::Error::Msg(format!("layer {layer} has no {projection:?} of this rank"));
        let own = |member: usize| self.adapters[member].weights.layers[layer][projection as usize].as_ref();
        let stack = || self.stacks.get(group.rank, layer, projection).ok_or_else(missing);
        let first = own(group.members[0]).ok_or_else(missing)?;
        // Most adapters of a rank have one scale, which takes no table.
        let alike = group.members.iter().all(|&member| own(member).is_some_and(|other| other.factor == first.factor));
        let part = |own: &Tensor, stacked: fn(&Stack) -> &Tensor| match &group.weights {
            GroupWeights::Own => Ok(own.clone()),
            GroupWeights::Range(first) => stacked(stack()?).narrow(0, *first, group.members.len()),
            GroupWeights::Places(places) => ops::select(stacked(stack()?), places),
        };
        let (a, b) = (part(&first.a, |stack| &stack.a)?, part(&first.b, |stack| &stack.b)?);
        let delta = ops::product_of_two(&a, &b, x)?;
        let delta = match alike {
            true => ops::affine(&delta, f64::from(first.factor), 0.0)?,
            false => ops::mul(&delta, &part(&first.scale, |stack| &stack.scale)?)?,
        };
        let delta = delta.reshape((group.members.len() * group.length, ()))?;
        match &group.real {
            Some(real) => ops::select(&delta, real),
            None => Ok(delta),
        }
    }
}

impl Group {
    /// The group's rows of `[rows, in]`: `[members, length, in]` in `f32`.
    fn input(&self, x: &Tensor) -> Result<Tensor> {
        let selected = match &self.select {
            Some(rows) => ops::select(x, rows)?,
            None => x.clone(),
        };
        ops::cast(&selected, DType::F32)?.reshape((self.members.len(), self.length, ()))
    }
}

/// Puts one step's adapters into groups.
struct Arranger<'a, 'b> {
    adapters: &'b [RowsOfAdapter<'a>],
    batch_rows: usize,
    device: &'b Device,
    stacks: &'b mut Stacks,
}

type Sites = Vec<[Option<usize>; Projection::ALL.len()]>;

impl Arranger<'_, '_> {
    /// Which arrangement serves each site, and all arrangements: as many as there are different lists of ranks.
    fn arrange(&mut self) -> Result<(Sites, Vec<Arrangement>)> {
        let layers = self.adapters.iter().map(|adapter| adapter.weights.layers.len()).max().unwrap_or(0);
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut sites: Sites = vec![[None; Projection::ALL.len()]; layers];
        let mut arrangements = Vec::new();
        let mut ranks = Vec::with_capacity(self.adapters.len());
        for (layer, projections) in sites.iter_mut().enumerate() {
            for (projection, site) in projections.iter_mut().enumerate() {
                ranks.clear();
                ranks.extend(
                    self.adapters
                        .iter()
                        .map(|adapter| adapter.weights.layers[layer][projection].as_ref().map_or(0, LowRank::rank)),
                );
                if ranks.iter().all(|rank| *rank == 0) {
                    continue;
                }
                *site = Some(match known.get(&ranks) {
                    Some(&found) => found,
                    None => {
                        arrangements.push(self.arrangement(&ranks)?);
                        known.insert(ranks.clone(), arrangements.len() - 1);
                        arrangements.len() - 1
                    }
                });
            }
        }
        Ok((sites, arrangements))
    }

    /// For sites where the step's adapters have these ranks; 0 is none.
    fn arrangement(&mut self, ranks: &[usize]) -> Result<Arrangement> {
        let mut order: Vec<usize> = (0..ranks.len()).filter(|&adapter| ranks[adapter] > 0).collect();
        order.sort_by_key(|&adapter| (ranks[adapter], self.adapters[adapter].rows.len(), adapter));
        let mut drafts: Vec<Draft> = Vec::new();
        for adapter in order {
            let (rank, rows) = (ranks[adapter], self.adapters[adapter].rows.len());
            match drafts.last_mut() {
                // Padding to twice the shortest costs less than another round of small products.
                Some(draft) if draft.rank == rank && rows <= 2 * self.adapters[draft.members[0]].rows.len() + 8 => {
                    draft.members.push(adapter);
                }
                Some(_) | None => drafts.push(Draft { rank, members: vec![adapter] }),
            }
        }
        let mut rows = Vec::new();
        let groups = drafts.into_iter().map(|draft| self.group(draft, &mut rows)).collect::<Result<Vec<_>>>()?;
        let rows = match self.is_whole(&rows) {
            true => None,
            false => Some(ops::upload(&rows, rows.len(), self.device)?),
        };
        Ok(Arrangement { groups, rows })
    }

    /// Adds the group's real rows to `all`, in the order of its delta.
    fn group(&mut self, draft: Draft, all: &mut Vec<u32>) -> Result<Group> {
        let Draft { rank, mut members } = draft;
        let weights = match members.as_slice() {
            [_] => GroupWeights::Own,
            _ => {
                let owners: Vec<Owner> = members.iter().map(|&member| self.adapters[member].owner()).collect();
                let places = self.stacks.place(rank, &owners, self.device)?;
                let mut placed: Vec<(u32, usize)> = places.into_iter().zip(members).collect();
                placed.sort_unstable();
                let places: Vec<u32>;
                (places, members) = placed.into_iter().unzip();
                match places.windows(2).all(|pair| pair[1] == pair[0] + 1) {
                    true => GroupWeights::Range(places[0] as usize),
                    false => GroupWeights::Places(ops::upload(&places, places.len(), self.device)?),
                }
            }
        };
        let length = members.iter().map(|&member| self.adapters[member].rows.len()).max().unwrap_or(0);
        let (mut select, mut real) = (Vec::new(), Vec::new());
        for member in &members {
            let rows = self.adapters[*member].rows;
            real.extend((select.len() as u32..).take(rows.len()));
            select.extend((0..length).map(|row| rows.get(row).copied().unwrap_or(rows[0])));
            all.extend_from_slice(rows);
        }
        let padded = real.len() < select.len();
        Ok(Group {
            rank,
            members,
            length,
            select: if self.is_whole(&select) { None } else { Some(ops::upload(&select, select.len(), self.device)?) },
            real: if padded { Some(ops::upload(&real, real.len(), self.device)?) } else { None },
            weights,
        })
    }

    /// Whether these are all rows of the batch in order.
    fn is_whole(&self, rows: &[u32]) -> bool {
        rows.len() == self.batch_rows && (0u32..).zip(rows).all(|(place, row)| place == *row)
    }
}
