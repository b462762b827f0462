"""For authors of backends: `check_backend(backend)` in one test says whether a backend is one."""

from snt.testing.conformance import BackendFault as BackendFault
from snt.testing.conformance import Conformance as Conformance
from snt.testing.conformance import check_backend as check_backend
