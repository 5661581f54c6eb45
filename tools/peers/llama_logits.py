"""Has llama.cpp read a text, and writes what it expects after every token.

    python llama_logits.py LIBRARIES BINDING MODEL.gguf exact|fast THREADS CONTEXT

LIBRARIES is the folder with libllama, BINDING the one with the Python package llama_cpp. `exact`
keeps keys and values in f32 and uses no flash attention; `fast` is what llama.cpp does if it is not
told otherwise.

stdin: lines of token ids, which follow the ones before; an empty line starts anew. stdout: for a
start, the number of logits per token as 8 bytes; for tokens, their logits as f32; little-endian.
"""

import ctypes
import os
import sys

import numpy


def main() -> None:
    libraries, binding, path, mode, threads, context = sys.argv[1:]
    os.environ["LLAMA_CPP_LIB_PATH"] = libraries
    sys.path.insert(0, binding)
    import llama_cpp.llama_cpp as llama

    @llama.llama_log_callback
    def quiet(level, text, data):
        # Errors alone: what a line goes on with has a level above.
        if level == 4:
            sys.stderr.write(text.decode(errors="replace"))

    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    if not model:
        raise ValueError(f"{path} cannot be loaded")
    params = llama.llama_context_default_params()
    params.n_ctx = int(context)
    params.n_threads = params.n_threads_batch = int(threads)
    if mode == "exact":
        params.type_k = params.type_v = llama.GGML_TYPE_F32
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    session = llama.llama_init_from_model(model, params)
    if not session:
        raise ValueError(f"{path} cannot be run with {context} tokens of context")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    position = 0
    for line in sys.stdin:
        tokens = [int(word) for word in line.split()]
        if tokens:
            read(llama, session, tokens, position)
            position += len(tokens)
            for row in range(len(tokens)):
                logits = llama.llama_get_logits_ith(session, row)
                sys.stdout.buffer.write(numpy.ctypeslib.as_array(logits, (vocab,)).tobytes())
        else:
            llama.llama_memory_clear(llama.llama_get_memory(session), True)
            position = 0
            sys.stdout.buffer.write(vocab.to_bytes(8, "little"))
        sys.stdout.buffer.flush()


def read(llama, session, tokens: list[int], position: int) -> None:
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for row, token in enumerate(tokens):
        batch.token[row] = token
        batch.pos[row] = position + row
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = 0
        batch.logits[row] = True
    status = llama.llama_decode(session, batch)
    llama.llama_batch_free(batch)
    if status != 0:
        raise ValueError(f"llama_decode failed with {status}")


if __name__ == "__main__":
    main()
