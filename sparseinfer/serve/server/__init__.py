"""The own server: OpenAI's HTTP interface over one model folder, on one machine.

    options     what it is told
    run         its life: socket, signals, limits of connections
    app         paths, answers and errors; `schema` what a request may hold; `text` tokens to text and back
    guard       what is refused before a path sees it: keys, sizes, slow senders; `metrics` what is counted
    backend     the other side of the worker process, which LitServe starts; it is replaced at a reload
    worker      in that process: the loop over `encoder` or `decoder`, which compute many requests at once

Two processes, so that parsing and text never wait for Python that runs the model, nor it for them.
"""
