"""LitServe on a GPU, as its documentation advises for many requests: batching, several workers, fast_queue.

Each worker has its network on the GPU; there are as many API servers as workers, which is LitServe's default.
"""

import sys

import litserve

from loadtest.peers.litserve_batching import BATCH_TIMEOUT_S, LitServeClassifier
from loadtest.peers.model import DEVICE, MAX_BATCH, WORKERS

if __name__ == "__main__":
    api = LitServeClassifier(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/classify")
    server = litserve.LitServer(api, accelerator=DEVICE, devices=1, workers_per_device=WORKERS, fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=WORKERS, generate_client_file=False)
