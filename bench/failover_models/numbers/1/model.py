"""Counts to what it is asked for, a number each 20 ms."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

EVERY_S = 0.02


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy().flat[0])
            for number in range(count):
                time.sleep(EVERY_S)
                tensor = pb_utils.Tensor("number", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
