"""The CAS server that users log in at in the tests: django-cas-server, on a free port of 127.0.0.1.

usage: server.py HOME [PORT]: files are kept in HOME; {"port": N} is printed when it serves. Who there is: alice, password
any. Every service may log its users in, and is told when they log out.
"""

import json
import pathlib
import socketserver
import sys
import wsgiref.simple_server

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import include, path

home = pathlib.Path(sys.argv[1])
settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    # Requests are answered by threads, which wait for each other's writes.
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": home / "cas.sqlite3",
            "OPTIONS": {"timeout": 60, "transaction_mode": "IMMEDIATE"},
        }
    },
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
        "cas_server",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.locale.LocaleMiddleware",
    ],
    LANGUAGE_CODE="en",
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a server that lives as long as a test",
    STATIC_URL="/static/",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    USE_TZ=True,
    CAS_AUTH_CLASS="cas_server.auth.TestAuthUser",
    CAS_TEST_USER="alice",
    CAS_TEST_PASSWORD="any",
    # Nothing here asks another machine.
    CAS_COMPONENT_URLS=dict.fromkeys(
        ["bootstrap3_css", "bootstrap3_js", "html5shiv", "respond", "bootstrap4_css", "bootstrap4_js", "jquery"],
        "/static/none",
    ),
    CAS_NEW_VERSION_HTML_WARNING=False,
    CAS_NEW_VERSION_EMAIL_WARNING=False,
)
django.setup()
urlpatterns = [path("cas/", include("cas_server.urls", namespace="cas_server"))]


class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    # A browser opens several connections at once.
    request_queue_size = 64

    def server_bind(self):
        # Without the look-up of this machine's name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]
        self.setup_environ()


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *arguments):
        pass

    def address_string(self):
        return self.client_address[0]


call_command("migrate", verbosity=0)
from cas_server.models import ServicePattern  # noqa: E402 - not before there is a database

if not ServicePattern.objects.exists():
    ServicePattern.objects.create(pos=1, name="all", pattern=".*", single_log_out=True)
port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
server = Server(("127.0.0.1", port), Quiet)
server.set_app(get_wsgi_application())
print(json.dumps({"port": server.server_port}), flush=True)
server.serve_forever()
