//! Attention on the GPU: tiles of queries against tiles of keys, each document by itself.
//!
//! Queries, keys and values of f32 are multiplied in f32 (`kernels.cu`), those of bf16 on the tensor cores
//! (`attention.cu`), with an output in bf16; gradients are f32. Where the tiles lie is worked out on the host once for a
//! batch and kept with its [`Documents`]. One kernel serves decoders and encoders, which differ in what a query
//! sees ([`Geometry`]). New tokens of a generation have a kernel of their own, which reads a cache.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::launch::{ATTENTION, Launch, address, device, unwritten, upload};
use super::pointwise::of_type;
use crate::attention::{AttentionShape, Bidirectional};
use crate::documents::Documents;

/// Kernels compiled for heads of up to so many numbers; narrower ones are padded.
struct Compiled {
    /// What the entries' names begin with.
    name: &'static str,
    width: usize,
    forward: Tiles,
    /// The adjoint by queries.
    of_queries: Tiles,
    /// And by keys and values.
    of_keys: Tiles,
}

/// Rows of a block's own tile, and of those it goes over.
#[derive(Clone, Copy)]
struct Tiles {
    own: usize,
    next: usize,
}

impl Compiled {
    const SINGLE: [Self; 5] = [
        Self::single(16, 32),
        Self::single(32, 32),
        Self::single(64, 32),
        Self::single(128, 32),
        Self::single(256, 16),
    ];
    const NARROW: [Self; 2] = [Self::narrow(64, [64, 32, 64]), Self::narrow(128, [32; 3])];

    const fn single(width: usize, tile: usize) -> Self {
        let tiles = Tiles {
            own: tile,
            next: tile,
        };
        Self {
            name: "attention",
            width,
            forward: tiles,
            of_queries: tiles,
            of_keys: tiles,
        }
    }

    const fn narrow(width: usize, [forward, of_queries, of_keys]: [usize; 3]) -> Self {
        const fn tiles(own: usize, next: usize) -> Tiles {
            Tiles { own, next }
        }
        Self {
            name: "attention_bf16",
            width,
            forward: tiles(128, forward),
            of_queries: tiles(128, of_queries),
            of_keys: tiles(64, of_keys),
        }
    }

    fn of(dtype: DType, head: usize) -> Result<&'static Self> {
        let compiled: &[Self] = match dtype {
            DType::BF16 if head.is_multiple_of(8) => &Self::NARROW,
            DType::BF16 => bail!("attention in bf16 needs heads of a multiple of 8, not {head}"),
            _ => &Self::SINGLE,
        };
        match compiled.iter().find(|compiled| head <= compiled.width) {
            Some(found) => Ok(found),
            None => bail!(
                "attention in {dtype:?} with heads of {head} numbers is not computed on a GPU"
            ),
        }
    }

    fn is_narrow(&self) -> bool {
        self.name == "attention_bf16"
    }

    fn threads(&self) -> (usize, usize) {
        (if self.is_narrow() { 128 } else { 256 }, 1)
    }

    /// Bytes of shared memory of a kernel with so many operands of the block's own, as the kernels lay it out.
    fn shared(&self, tiles: Tiles, operands: usize) -> usize {
        let Tiles { own, next } = tiles;
        if self.is_narrow() {
            // Two operands in two stages, and for the keys' adjoint two numbers a query in two stages.
            2 * (self.width + 8) * (operands * own + 4 * next) + 16 * next
        } else {
            // Scores too, of each operand.
            let rows = (operands * own + 2 * next) * (self.width + 1);
            4 * (rows + operands * own * (own + 1))
        }
    }

    fn launch<'a>(&self, kernel: &'a str, like: &'a Tensor) -> Result<Launch<'a>> {
        let launch = Launch::new(kernel, device(like)?);
        Ok(if self.is_narrow() {
            launch.of_module(ATTENTION)
        } else {
            launch
        })
    }

    fn operand<'a>(&self, launch: Launch<'a>, tensor: &'a Tensor) -> Result<Launch<'a>> {
        if self.is_narrow() {
            launch.narrow(tensor)
        } else {
            launch.floats(tensor)
        }
    }
}

/// Keys of a cache that are worth a block of their own.
const KEYS_OF_A_BLOCK: usize = 256;
/// Blocks that keep a GPU of some hundred multiprocessors busy.
const ENOUGH_BLOCKS: usize = 1024;

/// So large a window reaches past everything, and adding a position to it does not overflow.
const ALL: usize = 1 << 29;

/// Heads, what a query sees and what becomes of a score.
pub(crate) struct Geometry {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Keys that a query sees before its own place, and behind it.
    before: usize,
    after: usize,
    scale: f64,
    softcap: Option<f64>,
}

impl From<&AttentionShape> for Geometry {
    fn from(shape: &AttentionShape) -> Self {
        Self {
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            before: shape.window.map_or(ALL, |window| (window - 1).min(ALL)),
            after: 0,
            scale: shape.scale,
            softcap: shape.softcap,
        }
    }
}

impl From<&Bidirectional> for Geometry {
    fn from(shape: &Bidirectional) -> Self {
        let reach = shape.window.unwrap_or(ALL).min(ALL);
        Self {
            heads: shape.heads,
            kv_heads: shape.heads,
            head_dim: shape.head_dim,
            before: reach,
            after: reach,
            scale: shape.scale,
            softcap: None,
        }
    }
}

impl Geometry {
    /// As every kernel over documents takes it, at the end of its arguments.
    fn to<'a>(&self, launch: Launch<'a>, tokens: usize) -> Result<Launch<'a>> {
        Ok(launch
            .int(tokens)?
            .int(self.heads)?
            .int(self.kv_heads)?
            .int(self.head_dim)?
            .int(self.before)?
            .int(self.after)?
            .float(self.scale)
            .float(self.softcap.unwrap_or(0.0)))
    }
}

pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
    shape: &Geometry,
) -> Result<(Tensor, Tensor)> {
    let tokens = documents.tokens();
    let compiled = Compiled::of(q.dtype(), shape.head_dim)?;
    let out = unwritten(q.shape(), q.dtype(), q)?;
    let log_sums = unwritten((shape.heads, tokens), DType::F32, q)?;
    let tiles = documents.tiles(compiled.forward.own, q.device())?;
    let kernel = format!("{}_{}", compiled.name, compiled.width);
    let mut launch = compiled.launch(&kernel, q)?;
    for operand in [q, k, v] {
        launch = compiled.operand(launch, operand)?;
    }
    let launch = compiled
        .operand(launch.words(tiles)?, &out)?
        .floats(&log_sums)?;
    let grid = (tiles.elem_count() / 3, shape.heads);
    let (threads, shared) = (compiled.threads(), compiled.shared(compiled.forward, 1));
    shape.to(launch, tokens)?.run(grid, threads, shared)?;
    Ok((out, log_sums))
}

pub(crate) fn attention_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    output: &Tensor,
    log_sums: &Tensor,
    documents: &Documents,
    shape: &Geometry,
) -> Result<(Tensor, Tensor, Tensor)> {
    let tokens = documents.tokens();
    let compiled = Compiled::of(q.dtype(), shape.head_dim)?;
    let delta = unwritten((shape.heads, tokens), DType::F32, q)?;
    Launch::new("attention_delta", device(q)?)
        .floats(dout)?
        .wide_or_narrow(output)?
        .floats(&delta)?
        .int(tokens)?
        .int(shape.heads)?
        .int(shape.head_dim)?
        .run(((tokens * shape.heads).div_ceil(8), 1), (256, 1), 0)?;
    let dq = unwritten(q.shape(), DType::F32, q)?;
    let dk = unwritten(k.shape(), DType::F32, q)?;
    let dv = unwritten(v.shape(), DType::F32, q)?;
    let dout = of_type(dout, q.dtype())?;
    let names =
        ["q", "kv"].map(|which| format!("{}_backward_{which}_{}", compiled.name, compiled.width));
    let run = |name, tiles: Tiles, heads, gradients: &[&Tensor]| {
        let of_documents = documents.tiles(tiles.own, q.device())?;
        let mut launch = compiled.launch(name, q)?;
        for operand in [&dout, q, k, v] {
            launch = compiled.operand(launch, operand)?;
        }
        launch = launch
            .floats(log_sums)?
            .floats(&delta)?
            .words(of_documents)?;
        for gradient in gradients {
            launch = launch.floats(gradient)?;
        }
        let grid = (of_documents.elem_count() / 3, heads);
        let shared = compiled.shared(tiles, 2);
        shape
            .to(launch, tokens)?
            .run(grid, compiled.threads(), shared)
    };
    let [of_queries, of_keys] = &names;
    run(of_queries, compiled.of_queries, shape.heads, &[&dq])?;
    run(of_keys, compiled.of_keys, shape.kv_heads, &[&dk, &dv])?;
    Ok((dq, dk, dv))
}

/// How far attention on the tensor cores may be from that in f32: numbers of bf16 are up to 0.4 % from what they round.
const APART: f64 = 1e-2;

/// Whether attention on the tensor cores gives what that in f32 gives, for both widths it is compiled for; why not, if it
/// does not.
pub(crate) fn try_tensor_cores(device: &Device) -> std::result::Result<(), String> {
    match std::env::var("SPARSAM_BF16_ATTENTION").as_deref() {
        Ok("0") => return Err("SPARSAM_BF16_ATTENTION is 0".to_owned()),
        Ok("1") => return Ok(()),
        _ => (),
    }
    for head_dim in [64, 128] {
        let apart = distance(device, head_dim).map_err(|error| error.to_string())?;
        // A distance that is not a number is none either.
        if apart.is_nan() || apart > APART {
            return Err(format!("they are {apart:.1e} away from f32"));
        }
    }
    Ok(())
}

/// The greatest distance of attention, its log-sums and its gradients on the tensor cores from the same in f32, relative,
/// for two documents of more than a tile.
fn distance(device: &Device, head_dim: usize) -> Result<f64> {
    let shape = Geometry::from(&AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim,
        scale: 1.0 / (head_dim as f64).sqrt(),
        window: None,
        softcap: None,
        rounded: true,
    });
    let documents = Documents::from_lengths(&[70, 135]);
    // From -2 to 2 (the generator of Numerical Recipes).
    let mut state = 1u32;
    let mut numbers = |heads: usize| -> Result<[Tensor; 2]> {
        let shape = (documents.tokens(), heads * head_dim);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(state) / f64::from(u32::MAX) * 4.0 - 2.0) as f32
        };
        let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| next()).collect();
        let narrow = Tensor::from_vec(values, shape, device)?.to_dtype(DType::BF16)?;
        Ok([narrow.to_dtype(DType::F32)?, narrow])
    };
    let (q, k, v) = (numbers(2)?, numbers(1)?, numbers(1)?);
    let [dout, _] = numbers(2)?;
    let run = |of: usize| -> Result<Vec<Vec<f32>>> {
        let (q, k, v) = (&q[of], &k[of], &v[of]);
        let (y, sums) = attention(q, k, v, &documents, &shape)?;
        let (dq, dk, dv) = attention_backward(&dout, q, k, v, &y, &sums, &documents, &shape)?;
        let all = [y.to_dtype(DType::F32)?, sums, dq, dk, dv];
        all.iter()
            .map(|tensor| tensor.flatten_all()?.to_vec1())
            .collect()
    };
    let (expected, found) = (run(0)?, run(1)?);
    let square = |number: f32| f64::from(number).powi(2);
    let apart = expected.iter().zip(&found).map(|(expected, found)| {
        let apart: f64 = expected.iter().zip(found).map(|(a, b)| square(a - b)).sum();
        (apart / expected.iter().copied().map(square).sum::<f64>()).sqrt()
    });
    // `max` would pass over what is not a number.
    Ok(apart.fold(0.0, |most: f64, apart| {
        if most.is_nan() || apart <= most {
            most
        } else {
            apart
        }
    }))
}

/// Keys and values of one sequence, `[room, kv_heads · head_dim]` each, of which the first `length` rows are there.
#[derive(Debug)]
pub(crate) struct DeviceRows {
    keys: Tensor,
    values: Tensor,
    length: usize,
}

impl DeviceRows {
    /// Room for more rows than it has, so that it is seldom moved.
    const LEAST: usize = 64;

    pub(crate) fn new(width: usize, device: &Device) -> Result<Self> {
        let empty = || Tensor::zeros((Self::LEAST, width), DType::F32, device);
        Ok(Self {
            keys: empty()?,
            values: empty()?,
            length: 0,
        })
    }

    /// Makes room for so many more rows.
    fn reserve(&mut self, more: usize) -> Result<()> {
        let (room, width) = self.keys.dims2()?;
        let wanted = self.length + more;
        if wanted <= room {
            return Ok(());
        }
        for rows in [&mut self.keys, &mut self.values] {
            let shape = (wanted.next_power_of_two(), width);
            let wider = Tensor::zeros(shape, DType::F32, rows.device())?;
            wider.slice_set(rows, 0, 0)?;
            *rows = wider;
        }
        Ok(())
    }
}

/// Where new tokens find what they see. Good as long as the caches it came of stay as they are.
pub(crate) struct Seen {
    /// For each token where its key and value are, those of its sequence, the first it sees and the end of these,
    /// `[tokens · 6]`.
    rows: Tensor,
    /// The most keys that one sees.
    most: usize,
}

/// Adds keys and values of new tokens to the caches of their sequences, each of which is a document.
pub(crate) fn append(
    k: &Tensor,
    v: &Tensor,
    caches: &mut [&mut DeviceRows],
    documents: &Documents,
    shape: &Geometry,
) -> Result<Seen> {
    let (tokens, width) = k.dims2()?;
    let bytes = (width * size_of::<f32>()) as u64;
    let mut rows: Vec<i64> = Vec::with_capacity(6 * tokens);
    let mut most = 0;
    for (cache, range) in caches.iter_mut().zip(documents.ranges()) {
        cache.reserve(range.len())?;
        let (keys, values) = (address(&cache.keys)?, address(&cache.values)?);
        for place in cache.length..cache.length + range.len() {
            let to = place as u64 * bytes;
            let seen = [place.saturating_sub(shape.before), place + 1];
            rows.extend([keys + to, values + to, keys, values].map(|address| address as i64));
            rows.extend(seen.map(|place| place as i64));
            most = most.max(seen[1] - seen[0]);
        }
        cache.length += range.len();
    }
    let rows = upload(rows, k)?;
    Launch::new("append_rows", device(k)?)
        .floats(k)?
        .floats(v)?
        .longs(&rows)?
        .int(width)?
        .rows(tokens, width)?;
    Ok(Seen { rows, most })
}

/// Attention of new tokens, `[tokens, heads · head_dim]`, over the caches they were added to.
pub(crate) fn attention_cached(q: &Tensor, seen: &Seen, shape: &Geometry) -> Result<Tensor> {
    if shape.head_dim > 256 {
        bail!(
            "heads of {} numbers are not computed with on a GPU",
            shape.head_dim
        );
    }
    let (tokens, width) = q.dims2()?;
    // Of a long cache each head's keys are shared among blocks, so far as there are not enough of them anyway.
    let blocks = (tokens * shape.heads).max(1);
    let shares = (seen.most / KEYS_OF_A_BLOCK)
        .min(ENOUGH_BLOCKS / blocks)
        .max(1);
    let out = unwritten((tokens * shares, width), DType::F32, q)?;
    let [tops, totals] = [(); 2].map(|()| unwritten(blocks * shares, DType::F32, q));
    let (tops, totals) = (tops?, totals?);
    Launch::new("attention_cached", device(q)?)
        .floats(q)?
        .longs(&seen.rows)?
        .floats(&out)?
        .floats(&tops)?
        .floats(&totals)?
        .int(shape.heads)?
        .int(shape.kv_heads)?
        .int(shape.head_dim)?
        .int(shares)?
        .float(shape.scale)
        .float(shape.softcap.unwrap_or(0.0))
        .run((tokens * shares, shape.heads), (256, 1), 0)?;
    if shares == 1 {
        return Ok(out);
    }
    let joined = unwritten((tokens, width), DType::F32, q)?;
    Launch::new("join_shares", device(q)?)
        .floats(&out)?
        .floats(&tops)?
        .floats(&totals)?
        .floats(&joined)?
        .int(shape.heads)?
        .int(shape.head_dim)?
        .int(shares)?
        .run((tokens, shape.heads), (128, 1), 0)?;
    Ok(joined)
}
