"""Raw records on disk, with their trees and the audit's words. Every number is recomputed from them."""
