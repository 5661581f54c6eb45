//! ONNX Runtime's C interface, as far as a provider of a few functions needs it.
//!
//! Tables of functions are read by place: `Api` holds `OrtApi`, `OrtEpApi` and `OrtModelEditorApi`
//! of version 24, and functions never move within them.
#![allow(clippy::missing_safety_doc, reason = "nobody outside this library calls these")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::transmute_copy;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

/// Opaque things of ONNX Runtime.
macro_rules! opaque {
    ($($name:ident),*) => { $(#[repr(C)] pub(crate) struct $name { _unused: [u8; 0] })* };
}
opaque!(Attribute, Graph, GraphSupport, KernelContext, Node, Options, Table, Value, ValueInfo);

/// Nothing, or an error that ONNX Runtime owns.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Status(pub(crate) *mut c_void);

/// The version whose tables are read.
const VERSION: u32 = 24;
/// `ORT_EP_FAIL`.
const FAILED: c_int = 11;
/// `ORT_OP_ATTR_INT`.
const INT: c_int = 1;
/// `ORT_OP_ATTR_STRING`.
const STRING: c_int = 5;
/// `OrtHardwareDeviceType_NPU`.
const NPU: c_int = 2;

/// A struct of functions that ONNX Runtime calls: a version, then pointers, most of them null.
macro_rules! table {
    ($name:ident, $functions:literal) => {
        #[repr(C)]
        pub(crate) struct $name {
            version: u32,
            functions: [*const c_void; $functions],
        }

        impl $name {
            pub(crate) fn new<const N: usize>(first: [*const c_void; N]) -> Self {
                let mut functions = [null(); $functions];
                functions[..N].copy_from_slice(&first);
                Self { version: VERSION, functions }
            }
        }
    };
}
table!(Factory, 32);
table!(Ep, 32);
table!(Info, 8);

/// The tables of functions.
pub(crate) struct Api {
    ort: usize,
    ep: usize,
    editor: usize,
}

static API: OnceLock<Api> = OnceLock::new();

/// Calls the function at a place of a table.
macro_rules! call {
    ($table:expr, $place:literal, ($($argument:expr => $kind:ty),* $(,)?) -> $result:ty) => {{
        let place = ($table as *const usize).wrapping_add($place);
        // SAFETY: the function at this place has this signature, the arguments are what it wants,
        // and the table lives as long as the process.
        unsafe {
            let function: unsafe extern "system" fn($($kind),*) -> $result = transmute_copy(&*place);
            function($($argument),*)
        }
    }};
}

/// Remembers ONNX Runtime's tables.
pub(crate) fn load(base: *const Table) {
    let ort = call!(base, 0, (VERSION => u32) -> *const c_void);
    let ep = call!(ort, 317, () -> *const c_void);
    let editor = call!(ort, 291, () -> *const c_void);
    API.get_or_init(|| Api {
        ort: ort.expose_provenance(),
        ep: ep.expose_provenance(),
        editor: editor.expose_provenance(),
    });
}

/// The tables.
fn api() -> &'static Api {
    API.get_or_init(|| Api { ort: 0, ep: 0, editor: 0 })
}

fn ort() -> *const c_void {
    std::ptr::with_exposed_provenance(api().ort)
}

/// No error.
pub(crate) fn ok() -> Status {
    Status(null_mut())
}

/// An error.
pub(crate) fn status(message: &CStr) -> Status {
    call!(ort(), 0, (FAILED => c_int, message.as_ptr() => *const c_char) -> Status)
}

/// Whether a call went well; its error is let go.
fn good(status: Status) -> bool {
    if status.0.is_null() {
        return true;
    }
    call!(ort(), 93, (status.0 => *mut c_void) -> ());
    false
}

fn text_at(text: *const c_char) -> CString {
    if text.is_null() {
        return CString::default();
    }
    // SAFETY: names that ONNX Runtime hands out end with a zero and outlive the call.
    unsafe { CStr::from_ptr(text) }.to_owned()
}

/// Makes a neural processor that is not there, and its device.
///
/// # Safety
/// `out` is a place for a device.
pub(crate) unsafe fn create_device(
    factory: *mut Factory,
    vendor: &CStr,
    out: *mut *mut c_void,
) -> Status {
    let ep: *const c_void = std::ptr::with_exposed_provenance(api().ep);
    let mut hardware: *mut c_void = null_mut();
    let made = call!(ep, 16, (NPU => c_int, 0xfa4e => u32, 1 => u32, vendor.as_ptr() =>
        *const c_char, null() => *const c_void, &raw mut hardware => *mut *mut c_void) -> Status);
    if !made.0.is_null() {
        return made;
    }
    call!(ep, 0, (factory => *mut Factory, hardware => *const c_void, null() => *const c_void,
        null() => *const c_void, out => *mut *mut c_void) -> Status)
}

/// An entry of a session's configuration.
pub(crate) fn option(options: *const Options, key: &CStr) -> Option<String> {
    let mut bytes = [0_u8; 64];
    let mut size = bytes.len();
    let found = call!(ort(), 238, (options => *const Options, key.as_ptr() => *const c_char,
        bytes.as_mut_ptr().cast() => *mut c_char, &raw mut size => *mut usize) -> Status);
    if !good(found) {
        return None;
    }
    CStr::from_bytes_until_nul(&bytes).ok()?.to_str().ok().map(str::to_owned)
}

/// A graph's nodes, each after the ones that it reads.
pub(crate) fn node_list(graph: *const Graph) -> Vec<*const Node> {
    let mut count = 0;
    good(call!(ort(), 344, (graph => *const Graph, &raw mut count => *mut usize) -> Status));
    let mut nodes = vec![null(); count];
    good(call!(ort(), 345, (graph => *const Graph, nodes.as_mut_ptr() => *mut *const Node,
        count => usize) -> Status));
    nodes
}

/// A node's operator.
pub(crate) fn operator(node: *const Node) -> String {
    let mut text = null();
    good(call!(ort(), 350, (node => *const Node, &raw mut text => *mut *const c_char) -> Status));
    text_at(text).to_string_lossy().into_owned()
}

/// What a node reads.
pub(crate) fn inputs(node: *const Node) -> Vec<*const ValueInfo> {
    let mut count = 0;
    good(call!(ort(), 353, (node => *const Node, &raw mut count => *mut usize) -> Status));
    let mut values = vec![null(); count];
    good(call!(ort(), 354, (node => *const Node, values.as_mut_ptr() => *mut *const ValueInfo,
        count => usize) -> Status));
    values
}

/// What a node writes.
pub(crate) fn outputs(node: *const Node) -> Vec<*const ValueInfo> {
    let mut count = 0;
    good(call!(ort(), 355, (node => *const Node, &raw mut count => *mut usize) -> Status));
    let mut values = vec![null(); count];
    good(call!(ort(), 356, (node => *const Node, values.as_mut_ptr() => *mut *const ValueInfo,
        count => usize) -> Status));
    values
}

/// A value's name.
pub(crate) fn name(value: *const ValueInfo) -> CString {
    let mut text = null();
    good(call!(ort(), 289, (value => *const ValueInfo, &raw mut text => *mut *const c_char)
        -> Status));
    text_at(text)
}

/// The elements of a constant.
pub(crate) fn constant(value: *const ValueInfo) -> Option<Vec<f32>> {
    let mut tensor: *const Value = null();
    let found = call!(ort(), 326, (value => *const ValueInfo, &raw mut tensor => *mut *const Value)
        -> Status);
    (good(found) && !tensor.is_null()).then(|| floats(tensor))
}

/// Says that all of these nodes are taken together, constants included.
pub(crate) fn fuse(support: *mut GraphSupport, nodes: &[*const Node]) -> Status {
    #[repr(C)]
    struct Fusion {
        version: u32,
        drop_constants: bool,
    }
    let fusion = Fusion { version: VERSION, drop_constants: true };
    let ep: *const c_void = std::ptr::with_exposed_provenance(api().ep);
    call!(ep, 2, (support => *mut GraphSupport, nodes.as_ptr() => *const *const Node,
        nodes.len() => usize, &raw const fusion => *const Fusion) -> Status)
}

/// An attribute of a node.
pub(crate) fn attribute(node: *const Node, name: &CStr) -> Option<*const Attribute> {
    let mut attribute = null();
    let found = call!(ort(), 361, (node => *const Node, name.as_ptr() => *const c_char,
        &raw mut attribute => *mut *const Attribute) -> Status);
    (good(found) && !attribute.is_null()).then_some(attribute)
}

/// A text attribute's value.
pub(crate) fn text(attribute: *const Attribute) -> Option<String> {
    let mut size = 0;
    // Without room it fails, and says how much there has to be.
    good(call!(ort(), 272, (attribute => *const Attribute, STRING => c_int,
        null_mut() => *mut c_void, 0 => usize, &raw mut size => *mut usize) -> Status));
    let mut bytes = vec![0_u8; size];
    let read = call!(ort(), 272, (attribute => *const Attribute, STRING => c_int,
        bytes.as_mut_ptr().cast() => *mut c_void, size => usize, &raw mut size => *mut usize)
        -> Status);
    good(read).then(|| String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
}

/// A node's name.
fn node_name(node: *const Node) -> CString {
    let mut text = null();
    good(call!(ort(), 349, (node => *const Node, &raw mut text => *mut *const c_char) -> Status));
    text_at(text)
}

/// A node that stands for a compiled piece: in place of the fused node, whose name it has.
///
/// # Safety
/// `out` is a place for a node.
pub(crate) unsafe fn context_node(
    source: &CStr,
    context: &str,
    fused: *const Node,
    out: *mut *mut Node,
) -> Status {
    let one = 1_i64;
    let attribute = |name: &CStr, data: *const c_void, len: usize, kind: c_int| {
        let mut made: *mut Attribute = null_mut();
        let len = c_int::try_from(len).unwrap_or(0);
        good(call!(ort(), 211, (name.as_ptr() => *const c_char, data => *const c_void,
            len => c_int, kind => c_int, &raw mut made => *mut *mut Attribute) -> Status));
        made
    };
    let mut attributes = [
        attribute(c"main_context", (&raw const one).cast(), 1, INT),
        attribute(c"embed_mode", (&raw const one).cast(), 1, INT),
        attribute(c"ep_cache_context", context.as_ptr().cast(), context.len(), STRING),
        attribute(c"source", source.as_ptr().cast(), source.count_bytes(), STRING),
    ];
    let names =
        |values: Vec<*const ValueInfo>| -> Vec<CString> { values.into_iter().map(name).collect() };
    let (called, inputs, outputs) = (node_name(fused), names(inputs(fused)), names(outputs(fused)));
    let reads: Vec<*const c_char> = inputs.iter().map(|name| name.as_ptr()).collect();
    let writes: Vec<*const c_char> = outputs.iter().map(|name| name.as_ptr()).collect();
    let editor: *const c_void = std::ptr::with_exposed_provenance(api().editor);
    let made = call!(editor, 6, (c"EPContext".as_ptr() => *const c_char,
        c"com.microsoft".as_ptr() => *const c_char, called.as_ptr() => *const c_char,
        reads.as_ptr() => *const *const c_char, reads.len() => usize,
        writes.as_ptr() => *const *const c_char, writes.len() => usize,
        attributes.as_mut_ptr() => *mut *mut Attribute, attributes.len() => usize,
        out => *mut *mut Node) -> Status);
    // The node has copies.
    for attribute in attributes {
        call!(ort(), 212, (attribute => *mut Attribute) -> ());
    }
    made
}

/// An input of a run.
pub(crate) fn input(context: *mut KernelContext, index: usize) -> *const Value {
    let mut value = null();
    good(call!(ort(), 90, (context => *const KernelContext, index => usize,
        &raw mut value => *mut *const Value) -> Status));
    value
}

/// A tensor's shape.
pub(crate) fn dims(value: *const Value) -> Vec<i64> {
    let mut info: *mut c_void = null_mut();
    good(call!(ort(), 65, (value => *const Value, &raw mut info => *mut *mut c_void) -> Status));
    let mut count = 0;
    good(call!(ort(), 61, (info => *const c_void, &raw mut count => *mut usize) -> Status));
    let mut dims = vec![0; count];
    good(call!(ort(), 62, (info => *const c_void, dims.as_mut_ptr() => *mut i64, count => usize)
        -> Status));
    call!(ort(), 99, (info => *mut c_void) -> ());
    dims
}

/// A tensor's elements.
pub(crate) fn floats(value: *const Value) -> Vec<f32> {
    let len: i64 = dims(value).iter().product();
    let mut data: *mut c_void = null_mut();
    good(call!(ort(), 51, (value => *const Value, &raw mut data => *mut *mut c_void) -> Status));
    let len = usize::try_from(len).unwrap_or(0);
    if data.is_null() {
        return Vec::new();
    }
    // SAFETY: it is a tensor of `f32` with as many elements as its shape says.
    unsafe { std::slice::from_raw_parts(data.cast::<f32>(), len) }.to_vec()
}

/// Writes an output of a run.
pub(crate) fn write_output(
    context: *mut KernelContext,
    index: usize,
    dims: &[i64],
    elements: &[f32],
) {
    let mut value: *mut Value = null_mut();
    good(call!(ort(), 91, (context => *mut KernelContext, index => usize,
        dims.as_ptr() => *const i64, dims.len() => usize, &raw mut value => *mut *mut Value)
        -> Status));
    let mut data: *mut c_void = null_mut();
    good(call!(ort(), 51, (value => *mut Value, &raw mut data => *mut *mut c_void) -> Status));
    let len: i64 = dims.iter().product();
    if !data.is_null() && usize::try_from(len).is_ok_and(|len| len == elements.len()) {
        // SAFETY: the output has room for as many elements as its shape says.
        unsafe { data.cast::<f32>().copy_from_nonoverlapping(elements.as_ptr(), elements.len()) };
    }
}
