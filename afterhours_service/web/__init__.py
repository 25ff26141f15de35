"""What every HTTP route needs: the gate, the catalogue of errors, schemas, limits, headers, the API's description."""
