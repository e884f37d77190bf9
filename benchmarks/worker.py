"""The loop that each contender's process runs: one JSON request a line, one JSON answer a line.

A request names a case and its arguments. `{"do": "check"}` answers the numbers that both sides must
agree on; `{"do": "time", "count": n}` answers the seconds of n repetitions in a row, after one that
is not counted.
A case is a function `(**arguments) -> (repetition, check)` of two functions without arguments.
`{"do": "describe"}` answers versions and device, the names of the cases and of the ODE methods.
"""

import json
import os
import sys
import time

from common import peak_mb


def serve(cases, describe, methods):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    ready = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "describe":
            answer = {**describe(), "cases": list(cases), "methods": list(methods)}
        else:
            name, arguments = request["case"], request["arguments"]
            label = json.dumps([name, arguments], sort_keys=True)
            if label not in ready:
                ready.clear()  # one case's memory at a time
                repetition, check = cases[name](**arguments)
                ready[label] = repetition, check
                if request["do"] == "time":
                    repetition()
            repetition, check = ready[label]
            if request["do"] == "check":
                answer = check()
            else:
                start = time.perf_counter()
                for _ in range(request["count"]):
                    repetition()
                answer = {
                    "seconds": time.perf_counter() - start,
                    "peak_mb": peak_mb(),
                }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
