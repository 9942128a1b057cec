# Files of parameters, read before Snakemake reads them: it takes the last of two equal keys without a word, and names
# neither the file nor the line that is not YAML.
import sys

from diffsiam import schema
from diffsiam.errors import UserError

try:
    given = [schema.parse(str(file)) for file in workflow.overwrite_configfiles]
    # Merged into params.yaml, a preset would leave the overrides there that it does not have itself.
    WHOLE = any(map(schema.whole, given))
    if not WHOLE and os.path.exists(PARAMS):
        schema.parse(PARAMS)
except UserError as e:
    print(e, file=sys.stderr)
    sys.exit(2)
