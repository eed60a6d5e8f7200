// Package codegen has the schema fields that the provider fills in for .NET's SDK generator, which is not served as a module.
package codegen

type CSharpPackageInfo struct {
	Namespaces           map[string]string `json:"namespaces,omitempty"`
	PackageReferences    map[string]string `json:"packageReferences,omitempty"`
	RespectSchemaVersion bool              `json:"respectSchemaVersion,omitempty"`
	RootNamespace        string            `json:"rootNamespace,omitempty"`
}
