"""Every door: the API, its description, health, the admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

from cachewarm import api as cachewarm_api
from memory.api import embeddings, health, mem0_oss, mem0_platform, problems, prometheus
from memory.api import urls as memory_urls

urlpatterns = [
    path("api/v1/", include(memory_urls.urlpatterns)),
    path("api/v1/", include(cachewarm_api.urlpatterns)),
    path("api/v1/", include(memory_urls.WHOLE_USER)),
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs/", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("", include(mem0_platform.urlpatterns)),
    path("", include(mem0_oss.urlpatterns)),
    re_path(r"^api/", problems.unknown_route, name="unknown"),
    path("v1/embeddings", embeddings.Embeddings.as_view(), name="embeddings"),
    path("v1/models", embeddings.Models.as_view(), name="models"),
    path("healthz", health.healthz, name="healthz"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", prometheus.page, name="metrics"),
    path("admin/", admin.site.urls),
]

handler400 = problems.bad_request
handler404 = problems.not_found
handler500 = problems.server_error
