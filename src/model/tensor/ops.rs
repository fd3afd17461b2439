//! The only door from this decoder to the device: every tensor operation, upload and download goes through here and is
//! counted, so that what a step costs a GPU can be held by tests that have none.
//!
//! An operation is what candle 0.11.1 launches one CUDA kernel for; `cuda.tsv` says where each kernel is. Views (`narrow`,
//! `t`, a `reshape` of what is contiguous) launch nothing and are not counted. Operations take broadcast shapes where
//! candle's do.

use std::cell::RefCell;

use candle_core::{DType, Device, Result, Shape, Tensor, WithDType};

use super::paged::Paged;

macro_rules! operations {
    ($($(#[$comment:meta])* $name:ident,)+) => {
        /// Kinds of operations. A kind has one kernel for each dtype; casts have one for each pair.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op {
            $($(#[$comment])* $name,)+
        }

        impl Op {
            const ALL: &[Self] = &[$(Self::$name,)+];
        }
    };
}

operations! {
    Matmul,
    Add,
    Sub,
    Mul,
    Div,
    Affine,
    Exp,
    Log,
    Silu,
    ToF32,
    ToF16,
    ToBf16,
    ToU32,
    Softmax,
    /// Of all sequences over their pages: one kernel of `candle-flash-attn`.
    PagedAttention,
    RmsNorm,
    Rope,
    Select,
    Gather,
    Scatter,
    IndexAdd,
    Sum,
    /// Of at most 32 values, which candle sums by another kernel.
    SumFew,
    Max,
    Sort,
    Where,
    Less,
    LessEqual,
    GreaterEqual,
    Equal,
    /// A strided view made contiguous.
    Copy,
    /// One tensor into part of another.
    CopyInto,
    Fill,
}

const OPS: usize = Op::ALL.len();
const DTYPES: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8];

/// What was done on one thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    operations: [[u32; DTYPES.len()]; OPS],
    pub uploads: u32,
    pub upload_bytes: u64,
    pub downloads: u32,
    pub download_bytes: u64,
    /// Rows whose logits left the device because their token could not be decided there.
    pub undecided: u32,
}

impl Counts {
    pub const NONE: Self = Self {
        operations: [[0; DTYPES.len()]; OPS],
        uploads: 0,
        upload_bytes: 0,
        downloads: 0,
        download_bytes: 0,
        undecided: 0,
    };

    /// This thread's counts, which start again from nothing.
    pub fn take() -> Self {
        COUNTS.replace(Self::NONE)
    }

    pub fn operations(&self) -> u64 {
        self.operations.iter().flatten().map(|&count| u64::from(count)).sum()
    }
}

#[cfg(test)]
impl Counts {
    /// The operations and dtypes that occurred.
    pub fn used(&self) -> impl Iterator<Item = (Op, DType)> {
        self.by_kind().into_iter().map(|(op, dtype, _)| (op, dtype))
    }

    /// How often each occurred.
    pub fn by_kind(&self) -> Vec<(Op, DType, u32)> {
        let of = |op: usize| DTYPES.into_iter().zip(self.operations[op]).map(move |(dtype, count)| (op, dtype, count));
        let all = (0..OPS).flat_map(of).filter(|(.., count)| *count > 0);
        all.map(|(op, dtype, count)| (Op::ALL[op], dtype, count)).collect()
    }
}

thread_local! {
    static COUNTS: RefCell<Counts> = const { RefCell::new(Counts::NONE) };
}

fn count(op: Op, dtype: DType) -> Result<()> {
    let Some(place) = DTYPES.iter().position(|known| *known == dtype) else {
        candle_core::bail!("{op:?} on {dtype:?} is no operation of this decoder")
    };
    COUNTS.with_borrow_mut(|counts| counts.operations[op as usize][place] += 1);
    Ok(())
}

/// Counts rows whose logits leave the device although only a score was asked for.
pub fn count_undecided(rows: usize) {
    COUNTS.with_borrow_mut(|counts| counts.undecided += rows as u32);
}

/// Host values to a tensor on `device`.
pub fn upload<T: WithDType>(values: &[T], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    COUNTS.with_borrow_mut(|counts| {
        counts.uploads += 1;
        counts.upload_bytes += size_of_val(values) as u64;
    });
    Tensor::from_slice(values, shape, device)
}

/// A tensor's values in row-major order.
pub fn download(x: &Tensor) -> Result<Vec<f32>> {
    let x = contiguous(&cast(x, DType::F32)?)?;
    COUNTS.with_borrow_mut(|counts| {
        counts.downloads += 1;
        counts.download_bytes += (x.elem_count() * size_of::<f32>()) as u64;
    });
    x.flatten_all()?.to_vec1()
}

/// `x · weightᵀ` for `x` of `[rows, in]` and `weight` of `[out, in]`.
pub fn product(weight: &Tensor, x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return matmul(x, &turned(weight)?);
    }
    // On a CPU a transposed right side is packed anew in each call; with the weight on the left the same product takes half
    // the time at 4 to 32 rows (`cargo bench --bench model`).
    upright(&matmul(weight, &turned(x)?)?)
}

/// `x · aᵀ · bᵀ` for `x` of `[n, rows, in]`, `a` of `[n, r, in]` and `b` of `[n, out, r]`.
pub fn product_of_two(a: &Tensor, b: &Tensor, x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return matmul(&matmul(x, &turned(a)?)?, &turned(b)?);
    }
    upright(&matmul(b, &matmul(a, &turned(x)?)?)?)
}

/// The last two dimensions exchanged: a view.
fn turned(x: &Tensor) -> Result<Tensor> {
    x.transpose(x.rank() - 2, x.rank() - 1)
}

/// `[.., out, rows]` as contiguous `[.., rows, out]`.
fn upright(transposed: &Tensor) -> Result<Tensor> {
    let turned = turned(transposed)?;
    match turned.dim(turned.rank() - 2)? {
        1 => transposed.reshape(turned.shape()),
        _ => contiguous(&turned),
    }
}

pub fn matmul(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Matmul, left.dtype())?;
    left.matmul(right)
}

pub fn add(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Add, left.dtype())?;
    left.broadcast_add(right)
}

pub fn sub(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Sub, left.dtype())?;
    left.broadcast_sub(right)
}

pub fn mul(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Mul, left.dtype())?;
    left.broadcast_mul(right)
}

pub fn div(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Div, left.dtype())?;
    left.broadcast_div(right)
}

/// `x · factor + summand`, both rounded to the tensor's dtype.
pub fn affine(x: &Tensor, factor: f64, summand: f64) -> Result<Tensor> {
    count(Op::Affine, x.dtype())?;
    x.affine(factor, summand)
}

pub fn exp(x: &Tensor) -> Result<Tensor> {
    count(Op::Exp, x.dtype())?;
    x.exp()
}

pub fn log(x: &Tensor) -> Result<Tensor> {
    count(Op::Log, x.dtype())?;
    x.log()
}

pub fn silu(x: &Tensor) -> Result<Tensor> {
    count(Op::Silu, x.dtype())?;
    candle_nn::ops::silu(x)
}

/// The same tensor if it already has this dtype.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let op = match dtype {
        DType::F32 => Op::ToF32,
        DType::F16 => Op::ToF16,
        DType::BF16 => Op::ToBf16,
        DType::U32 => Op::ToU32,
        other => candle_core::bail!("a cast to {other:?} is no operation of this decoder"),
    };
    count(op, x.dtype())?;
    x.to_dtype(dtype)
}

/// Over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    count(Op::Softmax, x.dtype())?;
    candle_nn::ops::softmax_last_dim(x)
}

/// `[rows, heads, head_dim]`
pub fn paged_attention(ask: &Paged) -> Result<Tensor> {
    count(Op::PagedAttention, ask.queries.dtype())?;
    #[cfg(test)]
    if ask.queries.device().is_cpu() {
        return super::tests::paged::stand_in(ask);
    }
    flash(ask)
}

#[cfg(feature = "flash-attn")]
fn flash(ask: &Paged) -> Result<Tensor> {
    let tables = ask.tables;
    let (before, after) = ask.reach();
    candle_flash_attn::flash_attn_varlen_paged_windowed(
        ask.queries,
        ask.keys,
        ask.values,
        &tables.rows,
        &tables.keys,
        &tables.blocks,
        None,
        tables.most_rows,
        tables.most_keys,
        ask.scale,
        before,
        after,
        ask.keys.dim(1)?,
        None,
    )
}

#[cfg(not(feature = "flash-attn"))]
fn flash(ask: &Paged) -> Result<Tensor> {
    candle_core::bail!("this build reads no pages of {:?}: it has no feature flash-attn", ask.keys.shape())
}

/// Over the last dimension.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    count(Op::RmsNorm, x.dtype())?;
    candle_nn::ops::rms_norm(x, weight, eps as f32)
}

/// Rotates `[1, rows, heads, head_dim]` by `[rows, head_dim / 2]` cosines and sines.
pub fn rope(x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    count(Op::Rope, x.dtype())?;
    candle_nn::rotary_emb::rope_thd(x, cosines, sines)
}

/// Rows (entries of the first dimension) by `[n]` indices.
pub fn select(x: &Tensor, indices: &Tensor) -> Result<Tensor> {
    count(Op::Select, x.dtype())?;
    x.index_select(indices, 0)
}

/// Values along the last dimension by indices.
pub fn gather(x: &Tensor, indices: &Tensor) -> Result<Tensor> {
    count(Op::Gather, x.dtype())?;
    x.gather(indices, x.rank() - 1)
}

/// Writes `values` into `x` in place, along dimension `dim`, where `indices` of the same shape say.
pub fn scatter(x: &Tensor, indices: &Tensor, values: &Tensor, dim: usize) -> Result<()> {
    count(Op::Scatter, x.dtype())?;
    x.scatter_set(indices, values, dim)
}

/// `x` with `values`' rows added to the rows that `[n]` indices name.
pub fn index_add(x: &Tensor, indices: &Tensor, values: &Tensor) -> Result<Tensor> {
    count(Op::IndexAdd, x.dtype())?;
    x.index_add(indices, values, 0)
}

/// Over the last dimension, which stays with length 1.
pub fn sum(x: &Tensor) -> Result<Tensor> {
    let last = x.rank() - 1;
    count(if x.dim(last)? <= 32 { Op::SumFew } else { Op::Sum }, x.dtype())?;
    x.sum_keepdim(last)
}

/// Over the last dimension, which stays with length 1.
pub fn max(x: &Tensor) -> Result<Tensor> {
    count(Op::Max, x.dtype())?;
    x.max_keepdim(x.rank() - 1)
}

/// Longest last dimension that [`sort`] takes: candle's kernel keeps four bytes for each value, padded to a power of two, in
/// a block's shared memory, of which every device has 32 KiB.
pub const SORTABLE: usize = 8192;

/// Indices along the last dimension by falling value; equal values in any order.
pub fn sort(x: &Tensor) -> Result<Tensor> {
    let length = x.dim(x.rank() - 1)?;
    if length > SORTABLE {
        candle_core::bail!("{length} values are too many for one sort; {SORTABLE} are not")
    }
    count(Op::Sort, x.dtype())?;
    x.arg_sort_last_dim(false)
}

/// `yes` where `condition` is not 0, else `no`; shapes are broadcast to the condition's.
pub fn choose(condition: &Tensor, yes: &Tensor, no: &Tensor) -> Result<Tensor> {
    count(Op::Where, yes.dtype())?;
    condition.where_cond(&yes.broadcast_as(condition.shape())?, &no.broadcast_as(condition.shape())?)
}

pub fn less(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Less, left.dtype())?;
    left.broadcast_lt(right)
}

pub fn less_equal(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::LessEqual, left.dtype())?;
    left.broadcast_le(right)
}

pub fn greater_equal(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::GreaterEqual, left.dtype())?;
    left.broadcast_ge(right)
}

pub fn equal(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    count(Op::Equal, left.dtype())?;
    left.broadcast_eq(right)
}

/// A tensor that is contiguous in memory; the same one if it already is.
pub fn contiguous(x: &Tensor) -> Result<Tensor> {
    if !x.is_contiguous() {
        count(Op::Copy, x.dtype())?;
    }
    x.contiguous()
}

/// The same values in another shape; copied only if they are not contiguous.
pub fn reshape(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    contiguous(x)?.reshape(shape.into())
}

/// Tensors one after the other along `dim`: one copy for each.
pub fn join(parts: &[Tensor], dim: usize) -> Result<Tensor> {
    if let [only] = parts {
        return Ok(only.clone());
    }
    parts.iter().try_for_each(|part| count(Op::CopyInto, part.dtype()))?;
    Tensor::cat(parts, dim)
}

/// Writes `values` over `x`'s rows from `first` on, in place.
pub fn overwrite(x: &Tensor, values: &Tensor, first: usize) -> Result<()> {
    count(Op::CopyInto, x.dtype())?;
    x.slice_set(values, 0, first)
}

/// A tensor of one value.
pub fn filled(value: f32, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    count(Op::Fill, DType::F32)?;
    Tensor::full(value, shape, device)
}

/// Fresh memory, cleared as it is allocated: no kernel.
pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::zeros(shape, dtype, device)
}
