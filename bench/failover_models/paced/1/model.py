"""Sleeps, and says which process did; where a request names this process, it fails, or takes longer."""

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, _args):
        self.failed = set()

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        asked = json.loads(request.parameters() or "{}")
        pid = os.getpid()
        sleep_ms = float(pb_utils.get_input_tensor_by_name(request, "sleep_ms").as_numpy().flat[0])
        if str(pid) in asked.get("bad_pids", "").split(","):
            how, once = asked.get("how", ""), asked.get("once", "")
            if how and once not in self.failed:
                if once:
                    self.failed.add(once)
                error = pb_utils.TritonError("told to fail", getattr(pb_utils.TritonError, how))
                return pb_utils.InferenceResponse(error=error)
            sleep_ms = asked.get("bad_ms", sleep_ms)
        time.sleep(sleep_ms / 1000)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pid", np.array([pid], np.int64))])
