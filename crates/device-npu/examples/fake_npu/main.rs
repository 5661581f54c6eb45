//! A plug-in execution provider for tests: a pretended NPU that adds and multiplies, compiles into
//! contexts of its own, takes pieces of a limited size, and fails when it is told to.
//!
//! It speaks ONNX Runtime's C interface through the places of functions in its tables, which only
//! ever grow. Options: `most_nodes`, the largest piece; `fail_after`, runs before it fails.

mod abi;
mod program;

use abi::{
    Attribute, Ep, Factory, Graph, GraphSupport, Info, KernelContext, Node, Options, Status, Table,
    Value, ValueInfo, context_node, name, node_list, ok, option, status,
};
use program::{Kind, Program};
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI64, Ordering};

/// The provider's name.
const NAME: &CStr = c"FakeNpuExecutionProvider";

/// A session's provider; the table comes first, as C sees it.
#[repr(C)]
struct Provider {
    table: Ep,
    most_nodes: usize,
    /// Whether compiled contexts are asked for.
    contexts: bool,
    /// Runs that are left; negative: without end.
    left: AtomicI64,
}

/// A compiled piece.
#[repr(C)]
struct Compiled {
    table: Info,
    program: Program,
    outputs: usize,
    provider: *const Provider,
}

/// ONNX Runtime's entry.
///
/// # Safety
/// As the plug-in interface says.
#[unsafe(no_mangle)]
unsafe extern "system" fn CreateEpFactories(
    _name: *const c_char,
    base: *const Table,
    _logger: *const c_void,
    factories: *mut *mut Factory,
    most: usize,
    count: *mut usize,
) -> Status {
    abi::load(base);
    let factory = Factory::new([
        ep_name as *const c_void,
        vendor as *const c_void,
        supported_devices as *const c_void,
        create as *const c_void,
        release as *const c_void,
        vendor_id as *const c_void,
        version as *const c_void,
        std::ptr::null(),
        no_allocator as *const c_void,
        release_allocator as *const c_void,
        no_transfer as *const c_void,
        is_stream_aware as *const c_void,
        no_stream as *const c_void,
    ]);
    // SAFETY: ONNX Runtime gives room for `most` factories, and a place for their number.
    unsafe {
        *count = 0;
        if most > 0 {
            *factories = Box::into_raw(Box::new(factory));
            *count = 1;
        }
    }
    ok()
}

/// ONNX Runtime's exit.
///
/// # Safety
/// `factory` came from [`CreateEpFactories`].
#[unsafe(no_mangle)]
unsafe extern "system" fn ReleaseEpFactory(factory: *mut Factory) -> Status {
    // SAFETY: it was made by `Box::into_raw`, and comes back once.
    drop(unsafe { Box::from_raw(factory) });
    ok()
}

extern "system" fn ep_name(_: *const c_void) -> *const c_char {
    NAME.as_ptr()
}

extern "system" fn vendor(_: *const Factory) -> *const c_char {
    c"Tangor".as_ptr()
}

extern "system" fn vendor_id(_: *const Factory) -> u32 {
    0xfa4e
}

extern "system" fn version(_: *const Factory) -> *const c_char {
    c"1.0.0".as_ptr()
}

/// Its memory is the host's: nothing has to be allocated or copied.
unsafe extern "system" fn no_allocator(
    _: *mut Factory,
    _memory: *const c_void,
    _options: *const c_void,
    out: *mut *mut c_void,
) -> Status {
    // SAFETY: `out` is a place for a pointer.
    unsafe { *out = null_mut() };
    ok()
}

extern "system" fn release_allocator(_: *mut Factory, _: *mut c_void) {}

unsafe extern "system" fn no_transfer(_: *mut Factory, out: *mut *mut c_void) -> Status {
    // SAFETY: `out` is a place for a pointer.
    unsafe { *out = null_mut() };
    ok()
}

extern "system" fn is_stream_aware(_: *const Factory) -> bool {
    false
}

unsafe extern "system" fn no_stream(
    _: *mut Factory,
    _memory: *const c_void,
    _options: *const c_void,
    out: *mut *mut c_void,
) -> Status {
    // SAFETY: `out` is a place for a pointer.
    unsafe { *out = null_mut() };
    ok()
}

unsafe extern "system" fn supported_devices(
    factory: *mut Factory,
    _devices: *const *const c_void,
    _count: usize,
    out: *mut *mut c_void,
    most: usize,
    count: *mut usize,
) -> Status {
    // SAFETY: as ONNX Runtime promises, there is room for `most` devices.
    unsafe {
        *count = usize::from(most > 0);
        if most > 0 { abi::create_device(factory, c"Tangor", out) } else { ok() }
    }
}

unsafe extern "system" fn create(
    _factory: *mut Factory,
    _devices: *const *const c_void,
    _metadata: *const *const c_void,
    _count: usize,
    options: *const Options,
    _logger: *const c_void,
    out: *mut *mut Provider,
) -> Status {
    let number = |key: &CStr| option(options, key).and_then(|text| text.parse::<i64>().ok());
    let most = number(c"ep.fakenpuexecutionprovider.most_nodes").unwrap_or(i64::MAX);
    let provider = Provider {
        table: Ep::new([
            ep_name as *const c_void,
            capability as *const c_void,
            compile as *const c_void,
            release_compiled as *const c_void,
        ]),
        most_nodes: usize::try_from(most).unwrap_or(0),
        contexts: option(options, c"ep.context_enable").as_deref() == Some("1"),
        left: AtomicI64::new(number(c"ep.fakenpuexecutionprovider.fail_after").unwrap_or(-1)),
    };
    // SAFETY: `out` is a place for the provider.
    unsafe { *out = Box::into_raw(Box::new(provider)) };
    ok()
}

unsafe extern "system" fn release(_: *mut Factory, provider: *mut Provider) {
    // SAFETY: it was made by `create`, and comes back once.
    drop(unsafe { Box::from_raw(provider) });
}

/// Takes all nodes of a graph, or none.
unsafe extern "system" fn capability(
    provider: *mut Provider,
    graph: *const Graph,
    support: *mut GraphSupport,
) -> Status {
    // SAFETY: it is ours, and alive as long as its session.
    let provider = unsafe { &*provider };
    let nodes = node_list(graph);
    let known =
        |node: &*const Node| matches!(abi::operator(*node).as_str(), "Add" | "Mul" | "EPContext");
    if nodes.is_empty() || nodes.len() > provider.most_nodes || !nodes.iter().all(known) {
        return ok();
    }
    abi::fuse(support, &nodes)
}

unsafe extern "system" fn compile(
    provider: *mut Provider,
    graphs: *const *const Graph,
    fused: *const *const Node,
    count: usize,
    infos: *mut *mut Compiled,
    contexts: *mut *mut Node,
) -> Status {
    for index in 0..count {
        // SAFETY: there are `count` of each.
        let (graph, fused) = unsafe { (*graphs.add(index), *fused.add(index)) };
        let Some(program) = program_of(graph, fused) else {
            return status(c"the pretended NPU cannot compile this");
        };
        // SAFETY: the provider is ours; there is room for `count` results of each kind, of contexts
        // only if they are asked for.
        unsafe {
            if (*provider).contexts {
                let text = program.write();
                let made = context_node(NAME, &text, fused, contexts.add(index));
                if !made.0.is_null() {
                    return made;
                }
            }
            let compiled = Compiled {
                table: Info::new([
                    create_state as *const c_void,
                    compute as *const c_void,
                    release_state as *const c_void,
                ]),
                outputs: program.outputs.len(),
                program,
                provider,
            };
            *infos.add(index) = Box::into_raw(Box::new(compiled));
        }
    }
    ok()
}

/// A graph's nodes as a program, or the program in its context.
fn program_of(graph: *const Graph, fused: *const Node) -> Option<Program> {
    let nodes = node_list(graph);
    if let [node] = nodes[..]
        && abi::operator(node) == "EPContext"
    {
        let attribute: *const Attribute = abi::attribute(node, c"ep_cache_context")?;
        return Program::read(&abi::text(attribute)?);
    }
    let reads: Vec<CString> = abi::inputs(fused).into_iter().map(name).collect();
    let mut steps: Vec<(Kind, CString, CString, CString)> = Vec::new();
    let mut constants: Vec<(CString, Vec<f32>)> = Vec::new();
    for node in nodes {
        let kind = if abi::operator(node) == "Add" { Kind::Add } else { Kind::Mul };
        let inputs: Vec<*const ValueInfo> = abi::inputs(node);
        for &input in &inputs {
            let known = reads.contains(&name(input))
                || constants.iter().any(|constant| constant.0 == name(input))
                || steps.iter().any(|step| step.3 == name(input));
            if !known {
                constants.push((name(input), abi::constant(input)?));
            }
        }
        let output = *abi::outputs(node).first()?;
        steps.push((kind, name(*inputs.first()?), name(*inputs.get(1)?), name(output)));
    }
    let results = steps.iter().map(|step| &step.3);
    let names: Vec<&CString> =
        reads.iter().chain(constants.iter().map(|c| &c.0)).chain(results).collect();
    let slot = |of: &CString| names.iter().position(|known| *known == of);
    let outputs: Option<Vec<usize>> =
        abi::outputs(fused).into_iter().map(|output| slot(&name(output))).collect();
    let steps: Option<Vec<(Kind, usize, usize)>> =
        steps.iter().map(|(kind, a, b, _)| Some((*kind, slot(a)?, slot(b)?))).collect();
    Some(Program {
        inputs: reads.len(),
        constants: constants.into_iter().map(|constant| constant.1).collect(),
        steps: steps?,
        outputs: outputs?,
    })
}

unsafe extern "system" fn release_compiled(
    _: *mut Provider,
    infos: *mut *mut Compiled,
    count: usize,
) {
    for index in 0..count {
        // SAFETY: they were made by `compile`, and come back once.
        drop(unsafe { Box::from_raw(*infos.add(index)) });
    }
}

unsafe extern "system" fn create_state(
    _: *mut Compiled,
    _: *const c_void,
    state: *mut *mut c_void,
) -> Status {
    // SAFETY: `state` is a place for a pointer; there is no state.
    unsafe { *state = null_mut() };
    ok()
}

extern "system" fn release_state(_: *mut Compiled, _: *mut c_void) {}

unsafe extern "system" fn compute(
    compiled: *mut Compiled,
    _state: *mut c_void,
    context: *mut KernelContext,
) -> Status {
    // SAFETY: both are ours, and alive as long as their session.
    let (compiled, provider) = unsafe { (&*compiled, &*(*compiled).provider) };
    if provider.left.load(Ordering::Relaxed) == 0 {
        return status(c"the pretended NPU was told to fail");
    }
    provider.left.fetch_sub(1, Ordering::Relaxed);
    let inputs: Vec<*const Value> =
        (0..compiled.program.inputs).map(|index| abi::input(context, index)).collect();
    let dims = inputs.first().map_or(Vec::new(), |&input| abi::dims(input));
    let values = inputs.iter().map(|&input| abi::floats(input)).collect();
    let Some(results) = compiled.program.run(values) else {
        return status(c"the pretended NPU has another program");
    };
    for (index, result) in results.iter().enumerate().take(compiled.outputs) {
        abi::write_output(context, index, &dims, result);
    }
    ok()
}
