"""The wine model's own HTTP route, `POST /wine`, as FastAPI knows it."""

from fastapi import APIRouter
from pydantic import BaseModel
from server import ipu_worker_group

router = APIRouter(tags=["wine"])


class Wine(BaseModel):
    """Measurements of one wine."""

    alcohol: float
    malic_acid: float
    ash: float
    alcalinity_of_ash: float
    magnesium: float
    total_phenols: float
    flavanoids: float
    nonflavanoid_phenols: float
    proanthocyanins: float
    color_intensity: float
    hue: float
    od280_od315_of_diluted_wines: float
    proline: float


class Grower(BaseModel):
    """Who probably made it."""

    grower: str
    probability: float


@router.post("/wine", response_model=Grower)
def name_grower(wine: Wine):
    """Name the grower of a wine."""
    worker = ipu_worker_group.workers["wine"]
    worker.feed(wine.model_dump())
    return worker.get_result()
