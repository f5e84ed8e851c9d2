"""The app: middleware, routes and the worker behind them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from mmrec.serving import browsing, faults
from mmrec.serving.limits import BodyLimits
from mmrec.serving.monitoring import Measured
from mmrec.serving.page.page import page
from mmrec.serving.pictures import Pictures
from mmrec.serving.routes import health, managing, reading, writing
from mmrec.serving.run import quieten
from mmrec.serving.search_routes import searching
from mmrec.serving.service import ENCODING_PATHS, Service
from mmrec.serving.settings import SETTINGS_VARIABLE, ServiceSettings
from mmrec.serving.upload_routes import adding, comparing
from mmrec.serving.workers import forget_the_dead, load_when_there


def build_app(service: Service) -> FastAPI:
    """The app of one worker."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(
        title="mmrec",
        version=version("mmrec"),
        description="Recommendations from media: lists, scores of new items, vectors, events.",
        lifespan=life,
    )
    app.state.service = service
    app.state.pictures = Pictures(service.settings, service.database)
    faults.install(app)
    routers = (
        reading, searching, browsing.router, comparing, writing, adding, managing, health, page
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    app.add_middleware(
        BodyLimits,
        limits=service.settings.limits,
        upload_paths=ENCODING_PATHS,
        refuse=service.let_in,
    )
    app.add_middleware(Measured, monitoring=service.monitoring)
    return app


def from_environment() -> FastAPI:
    """The app of one of several workers: its settings are in the environment."""
    quieten()
    forget_the_dead()
    service = Service(ServiceSettings.model_validate_json(os.environ[SETTINGS_VARIABLE]))
    load_when_there(service)
    return build_app(service)
