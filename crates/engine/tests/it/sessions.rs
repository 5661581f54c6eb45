//! Sessions: ONNX Runtime GenAI's generator.

use crate::support::*;
use tangor_engine::{EngineError, LoadOptions, SamplingParams, SessionOptions};

const GREEDY: fn() -> SamplingParams = SamplingParams::default;

#[test]
fn appending_leaves_logits_pending_and_sampling_uses_them_up() {
    let model = load(&llama(), &oracle(), &exact());
    let mut session = model.session(SessionOptions::default()).unwrap();
    assert_eq!(session.logits(), None);
    assert_eq!(session.generate_next(&GREEDY()), Err(EngineError::NoLogits));
    session.append(&[1, 2, 3]).unwrap();
    assert_eq!(session.logits().map(<[f32]>::len), Some(256));
    let token = session.generate_next(&GREEDY()).unwrap();
    assert_eq!(session.tokens(), [1, 2, 3, token]);
    assert_eq!(session.logits(), None);
}

#[test]
fn set_logits_decide_the_next_token() {
    let model = load(&llama(), &oracle(), &exact());
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.append(&[9]).unwrap();
    let mut logits = vec![0.0; 256];
    logits[42] = 1.0;
    session.set_logits(&logits).unwrap();
    assert_eq!(session.generate_next(&GREEDY()), Ok(42));
    let error = session.set_logits(&[1.0]).unwrap_err();
    assert_eq!(error, EngineError::LogitsLength { found: 1, vocab: 256 });
}

#[test]
fn refusals_leave_the_session_as_it_was() {
    let model = load(&llama(), &oracle(), &exact());
    let mut session = model.session(SessionOptions { max_length: Some(8) }).unwrap();
    session.append(&[1, 2, 3]).unwrap();
    assert_eq!(session.append(&[]), Err(EngineError::EmptyPrompt));
    let error = EngineError::PromptTooLong { tokens: 9, context: 8 };
    assert_eq!(session.append(&[0; 6]), Err(error));
    let error = EngineError::UnknownToken { token: 256, vocab: 256 };
    assert_eq!(session.append(&[256]), Err(error));
    assert_eq!(session.rewind(4), Err(EngineError::Rewind { to: 4, tokens: 3 }));
    let warm = SamplingParams { temperature: -1.0, ..GREEDY() };
    assert!(matches!(session.generate_next(&warm), Err(EngineError::Parameter { .. })));
    assert_eq!(session.tokens(), [1, 2, 3]);
    assert!(session.logits().is_some());
    for _ in 0..5 {
        session.generate_next(&GREEDY()).unwrap();
    }
    let error = EngineError::PromptTooLong { tokens: 9, context: 8 };
    assert_eq!(session.generate_next(&GREEDY()), Err(error));
}

#[test]
fn generating_after_a_rewind_continues_from_the_last_kept_token() {
    let model = load(&llama(), &oracle(), &exact());
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.append(&prompt(1, 40)).unwrap();
    let first: Vec<_> = (0..6).map(|_| session.generate_next(&GREEDY()).unwrap()).collect();
    session.rewind(40).unwrap();
    let again: Vec<_> = (0..6).map(|_| session.generate_next(&GREEDY()).unwrap()).collect();
    assert_eq!(first, again);
    session.rewind(42).unwrap();
    assert_eq!(session.generate_next(&GREEDY()), Ok(first[2]));
}

#[test]
fn idle_sessions_give_their_pages_to_others_and_get_them_back() {
    let graph = llama();
    let page = load(&graph, &oracle(), &exact()).plan().kv.page_bytes;
    let options = LoadOptions { kv_bytes: Some(4 * page), ..exact() };
    let model = load(&graph, &oracle(), &options);
    let mut sessions: Vec<_> =
        (0..5).map(|_| model.session(SessionOptions::default()).unwrap()).collect();
    let alone = load(&graph, &oracle(), &exact());
    for round in 0..3 {
        for (index, session) in sessions.iter_mut().enumerate() {
            session.append(&prompt(index as u32 + round, 20)).unwrap();
            let mut other = alone.session(SessionOptions::default()).unwrap();
            other.append(session.tokens()).unwrap();
            let both = [session.logits().unwrap(), other.logits().unwrap()].map(bits);
            assert!(both[0] == both[1], "session {index} in round {round}");
        }
    }
}
