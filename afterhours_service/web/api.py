"""The API's description, which flask-smorest collects from the blueprints."""

from flask_smorest import Api

api = Api()
